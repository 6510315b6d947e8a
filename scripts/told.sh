#!/usr/bin/env bash
# told.sh WORDS COMMAND...: run a command that is silent for long, and say that it still runs: every
# second on a terminal, every twenty seconds elsewhere. Its exit status and its output are unchanged.
set -uo pipefail
words=$1
shift
"$@" &
job=$!
trap 'kill "$job" 2> /dev/null' INT TERM
if [ -t 2 ]; then every=1 shown='\r\033[K%s: %d s'; else every=20 shown='%s: %d s\n'; fi
began=$SECONDS next=$every
while kill -0 "$job" 2> /dev/null; do
    if ((SECONDS - began >= next)); then
        # shellcheck disable=SC2059  # the format is one of the two above
        printf "$shown" "$words" $((SECONDS - began)) >&2
        next=$((SECONDS - began + every))
    fi
    sleep 0.2
done
[ $every = 1 ] && printf '\r\033[K' >&2
wait "$job"
