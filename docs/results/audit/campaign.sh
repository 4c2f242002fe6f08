#!/usr/bin/env bash
# Makes and audits many small private runs, and tells whether any lower bound exceeds its claimed epsilon.
#
# campaign.sh RUNS OUT [folder of finetune and audit, default target/release]
# Environment: MODEL (default: the embedded model), DATA, TEMPLATE, UNIT.
# It can be interrupted: a run that is audited is not made again, one that is not is made anew.
set -euo pipefail
runs=$1 out=$2 bin=${3:-target/release}
mkdir -p "$out"
data=()
[ -n "${MODEL:-}" ] && data+=(--model "$MODEL")
[ -n "${DATA:-}" ] && data+=(--data "$DATA")
[ -n "${TEMPLATE:-}" ] && data+=(--template "$TEMPLATE")
[ -n "${UNIT:-}" ] && data+=(--unit-column "$UNIT")
epsilons=(0.5 1 2 4 8 16)
controllers=(sac constant rule random)
budgets=(fixed deck filter)
for ((i = 0; i < runs; i++)); do
    run=$out/run-$(printf %02d "$i")
    [ -f "$run/audit.json" ] && continue
    rm -rf "$run"
    # 6, 4 and 3 share factors, so the controller and the budget advance once a round of the one before.
    epsilon=${epsilons[$((i % 6))]} controller=${controllers[$(((i + i / 6) % 4))]} budget=${budgets[$(((i + i / 6) % 3))]}
    "$bin/finetune" "${data[@]}" --epsilon "$epsilon" --controller "$controller" --budget "$budget" --out "$run" \
        --steps 10 --decisions 5 --batch-size 96 --max-length 64 --max-rows-per-unit 1 --canaries 600 >"$run.log" 2>&1
    "$bin/audit" --run "$run" --people 0 --mechanism-canaries 1000 --exposure-samples 200 --generations 8 >>"$run.log" 2>&1 \
        || { echo "$run: $(tail -1 "$run.log")"; [ -f "$run/audit.json" ] || exit 1; }
done
"$bin/audit" --table "$out"/run-[0-9][0-9] >"$out/campaign.csv"
awk -F, 'NR > 1 { n++; if ($6 > $4 || $7 > $4) { bad++ } } END { print n " runs, " bad + 0 " with a lower bound above the claim" }' "$out/campaign.csv"
