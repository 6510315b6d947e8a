#!/usr/bin/env bash
# The docs build as a site in a separate environment, without torch. Every link, anchor and page of the
# navigation exists, and every name of the reference is found.
source "$(dirname "$0")/common.sh"

env="$VERIFY_DIR/docs"
wanted="$ROOT/scripts/requirements-docs.txt"
if ! cmp -s "$wanted" "$env/requirements.txt"; then
    rm -rf "$env"
    "$PYTHON" -m venv "$env"
    "$env/bin/python" -m pip install -q --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$env/requirements.txt"
fi
sources "$VERIFY_DIR/docs-src"
(cd "$VERIFY_DIR/docs-src" && NO_MKDOCS_2_WARNING=1 "$env/bin/python" -m mkdocs build --strict -q)
pages="$(find "$VERIFY_DIR/docs-src/build/site" -name '*.html' | wc -l)"
[ "$pages" -gt 30 ] || fail "the site has $pages pages"
pass "the site builds, $pages pages, and every link leads somewhere"
