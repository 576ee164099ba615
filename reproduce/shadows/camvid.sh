#!/bin/sh
# One setting of the CamVid experiment: victim, shadow, three attackers a representation, every attack, one JSON.
#   sh reproduce/shadows/camvid.sh CAMVID imagenet|scratch|longer block|random dealt|confidence|both|eight [PYTHON]
# Victim and shadows start from ImageNet weights, from scratch, or from scratch and train longer.
# D^S falls into in and out as dealt at random, or by the victim's confidence as in the paper; "both" takes two shadows,
# one trained on each half of the dealt D^S, "eight" those and six on random halves. What is done is not done again; a
# run that was stopped goes on. Partitions of one regime and split share models: not two of them at once, until these are
# trained.
set -e
cd "$(dirname "$0")/../.."
camvid=$1 regime=$2 split=$3 partition=$4 python=${5:-python3}
usage() {
    echo "usage: sh $0 CAMVID imagenet|scratch|longer block|random dealt|confidence|both|eight [PYTHON]" >&2
    exit 2
}
case $split in block|random) ;; *) usage ;; esac
case $partition in
    dealt|confidence) names=$partition ;;
    both) names="dealt swapped" ;;
    eight) names="dealt swapped 1 2 3 4 5 6" ;;
    *) usage ;;
esac
runs=runs/camvid/$regime/$split
setting=$runs/$partition
case $regime in
    imagenet) side=180 patch=22
              net="--crop 200 264 --backbone efficientnet_lite0 --pretrained --stages 4 --output-stride 16"
              net="$net --epochs 30 --lr 0.005 --head-factor 10" ;;
    scratch|longer)
        side=240 patch=30
        net="--crop 264 352 --backbone resnet18 --stages 3 --output-stride 8 --batch 8 --blur 0"
        case $regime in
            scratch) net="$net --epochs 80 --lr 0.03" ;;
            longer) net="$net --epochs 120 --lr 0.1" ;;
        esac ;;
    *) usage ;;
esac
data=data/camvid-$side splits=splits/camvid-$side/$split
net="$net --dataset camvid --root $data"
begin() { # begin SCRIPT RUN ARGS...: start a run, go on with it, or leave it when it has its results
    script=$1 run=$2; shift 2
    test -f "$run/results.json" && return
    if test -f "$run/last.pth.tar"; then $python "$script" --continue "$run"; else $python "$script" --out "$run" "$@"; fi
}
test -f $splits/shadow.txt ||
    $python -m datasets camvid --root "$camvid" --short-side $side --copy $data --splits splits/camvid-$side
begin train_victim.py $runs/victim $net --train $splits/victim_in.txt --test $splits/victim_out.txt
shadows=
for name in $names; do
    case $name in
        dealt) halves="--train $splits/shadow_in.txt --test $splits/shadow_out.txt" ;;
        swapped) halves="--train $splits/shadow_out.txt --test $splits/shadow_in.txt" ;;
        confidence) halves="--split $splits/shadow.txt --victim $runs/victim/last.pth.tar" ;;
        *) halves="--split $splits/shadow.txt --partition random --seed $name" ;;
    esac
    begin train_shadow.py $runs/shadow-$name $net $halves
    shadows="$shadows $runs/shadow-$name"
done
target="--victim $runs/victim/last.pth.tar --keep $runs/victim/posteriors --dataset camvid --root $data"
target="$target --members $splits/victim_in.txt --non-members $splits/victim_out.txt"
attack() { # attack NAME ATTACKER ARGS...
    name=$1 attacker=$2; shift 2
    test -f "$setting/$name/results.json" && return
    $python attack.py --out "$setting/$name" -resume "$attacker" $target -num-patch 10 "$@"
}
for seed in 0 1 2; do
    for input in loss concate; do
        case $input in # on the held-out part of D^S the loss map is done by then, C+GT goes on learning
            loss) epochs=15 ;;
            concate) epochs=$((120 / $(echo $names | wc -w))) ;;
        esac
        run=$setting/attacker-$input-$seed
        begin train_attacker.py $run --shadow $shadows -input $input --seed $seed --stride 4 --patch-size $patch \
            --epochs $epochs
        for select in full sliding random rejection; do
            attack $input-$select-$seed $run/best.pth.tar --select $select --seed $seed
        done
    done
done
for kind in confidence loss; do
    attack threshold-$kind-0 $setting/attacker-loss-0/best.pth.tar --threshold $kind
done
$python -m reproduce.shadows.table --collect $setting --victim $runs/victim --shadow $shadows \
    --into reproduce/results/shadows/camvid-$regime-$split-$partition.json
