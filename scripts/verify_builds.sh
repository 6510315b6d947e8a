#!/usr/bin/env bash
# All the checks of building and installing, one after the other, and a summary. Fails if one does.
# The quickest come first. They share environments and a wheel (common.sh).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

checks=(check_docs check_cuda_toolkit_missing check_sass check_oldest_torch check_no_compiler
    check_cuda_without_gpu check_wheel_two_torches)
[ $# -gt 0 ] && checks=("$@")

summary=()
status=0
for check in "${checks[@]}"; do
    echo "=== $check"
    started=$SECONDS
    if [ "$check" = check_sass ] && [ -x "${VERIFY_DIR:-build/verify}/new/bin/python" ]; then
        # The environment with the newest torch has triton, and triton has cuobjdump.
        PYTHON="${VERIFY_DIR:-build/verify}/new/bin/python" "scripts/$check.sh"
    else
        "scripts/$check.sh"
    fi
    case $? in
        0) outcome=PASS ;;
        77) outcome=SKIP ;;
        *) outcome=FAIL status=1 ;;
    esac
    summary+=("$outcome $check ($((SECONDS - started)) s)")
done
echo "=== summary"
printf '%s\n' "${summary[@]}"
exit $status
