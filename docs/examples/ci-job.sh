#!/bin/sh
# Runs one job of a CI system in a container with a kernel of its own.
#   ci-job.sh BUNDLE [TIMEOUT_S]
# Exits with the job's exit code; 124 if it took longer than TIMEOUT_S; 128+N if signal N ended this script.
set -eu

bundle=$1
timeout_s=${2:-600}
rundctl=${RUNDCTL:-rundctl}
name=ci-$$

# Whatever ends this script, nothing of the container stays: --force kills it, and is silent if it is gone already.
clean_up() {
    "$rundctl" delete --force "$name"
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

# </dev/null: a job that reads stdin must not hang. timeout(1) passes TERM on to rundctl, which passes it on to the job; a job that
# ignores it for ten seconds is killed, and then 137 says so instead of 124.
timeout --kill-after 10 "$timeout_s" "$rundctl" run --bundle "$bundle" "$name" </dev/null &
job=$!

code=0
wait "$job" || code=$?
exit "$code"
