#!/bin/sh
# Runs one job of a CI system in a container with a kernel of its own.
#   ci-job.sh BUNDLE [TIMEOUT_S]
# Exits with the job's exit code, and with another one for what is not the job's own doing, which a line on stderr names:
#   124    it took longer than TIMEOUT_S (a whole number of seconds)
#   137    it failed, and ran out of memory
#   128+N  signal N ended this script
set -eu

bundle=$1
timeout_s=${2:-600}
rundctl=${RUNDCTL:-rundctl}
name=ci-$$

log=$(mktemp)
say() { printf 'ci-job: %s\n' "$*" >&2; }

# Whatever ends this script, nothing of the container stays: --force kills it, and is silent if it is gone already.
clean_up() {
    "$rundctl" delete --force "$name"
    rm -f "$log"
}
trap clean_up EXIT

# The shell runs traps only when it does not wait for a foreground command, so the job is in the background. A signal to us ends the
# job as well: TERM first, and the clean-up does the rest.
stop() {
    trap '' HUP INT TERM
    kill -TERM "$job" 2>/dev/null || :
    exit "$1"
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM

# </dev/null: a job that reads stdin must not hang. timeout(1) passes TERM on to rundctl, which passes it on to the job.
began=$(date +%s)
timeout "$timeout_s" "$rundctl" --log "$log" run --bundle "$bundle" "$name" </dev/null &
job=$!

# A job may ignore TERM, as each PID 1 does that has no handler for it: ten seconds later it is killed. timeout(1), not killed itself,
# still says 124. tail(1) ends with the job.
{ timeout "$((timeout_s + 10))" tail -f --pid "$job" /dev/null || "$rundctl" kill "$name" KILL; } </dev/null >/dev/null 2>&1 &

code=0
wait "$job" || code=$?
if [ "$code" = 124 ] && [ "$(($(date +%s) - began))" -ge "$timeout_s" ]; then
    say "the job took longer than $timeout_s s"
elif [ "$code" != 0 ] && grep -q 'ran out of memory' "$log"; then
    say 'the job ran out of memory'
    code=137
fi
exit "$code"
