#!/bin/sh
# Make weights/ and examples/. Usage: sh examples/make.sh [PYTHON]
#
# Draws the streets; trains the victim, the DPSGD victim, the shadow, both attackers and two small reference models in
# runs/demo, where finished runs are kept; then writes victim, attackers and references to weights/, and to examples/ the
# images, the labels and the posteriors of the victim for the first 60 members and 60 non-members, and the posteriors of
# the DPSGD victim for the first 30 of each. Then trains four tiny reference models for online attacks, two on each half
# of these images, and writes them to weights/, too.
set -e
cd "$(dirname "$0")/.."
python=${1:-python3}
runs=runs/demo
$python -m datasets streets
test -f $runs/victim/results.json || $python train_victim.py --out $runs/victim
test -f $runs/victim-dpsgd/results.json ||
    $python train_victim.py -dpsgd -noise-variance 0.001 --epochs 240 --batch 32 --lr 0.016 --out $runs/victim-dpsgd
test -f $runs/shadow/results.json || $python train_shadow.py --victim $runs/victim/last.pth.tar --out $runs/shadow
for input in loss concate; do
    test -f $runs/$input/results.json || $python train_attacker.py --shadow $runs/shadow -input $input --out $runs/$input
done
test -f $runs/reference-0/results.json ||
    $python train_shadow.py --partition random --stages 2 --width 32 --seed 0 --out $runs/reference-0
test -f $runs/reference-1/results.json ||
    $python train_shadow.py --partition random --stages 2 --width 32 --seed 1 --out $runs/reference-1
$python -m examples.ship --runs $runs --count 60
for half in 0 1; do
    (cd examples && ls train/img/*.jpg val/img/*.jpg) | awk "NR % 2 == $half" |
        sed "p; s/img/label/; s/jpg/png/" | paste -d " " - - > $runs/half-$half.txt
done
for seed in 0 1; do
    for half in 0 1; do
        out=$runs/online-$half-$seed
        test -f $out/results.json || $python train_shadow.py --root examples --train $runs/half-$half.txt \
            --test $runs/half-$((1 - half)).txt --model unet --width 2 --epochs 20 --seed $seed --out $out
    done
done
$python -m examples.ship --runs $runs --count 60
