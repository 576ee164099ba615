#!/bin/sh
# One setting of the CamVid experiment: victim, shadow, three attackers a representation, every attack, one JSON.
#   sh reproduce/camvid.sh CAMVID imagenet|scratch block|random dealt|confidence [PYTHON]
# What is done is not done again; a run that was stopped goes on.
set -e
cd "$(dirname "$0")/.."
camvid=$1 regime=$2 split=$3 partition=$4 python=${5:-python3}
data=data/camvid-180 splits=splits/camvid-180/$split runs=runs/camvid/$regime/$split
setting=$runs/$partition
case $regime in
    imagenet) net="--backbone efficientnet_lite0 --pretrained --stages 4 --output-stride 16 --epochs 30 --lr 0.005 --head-factor 10" ;;
    scratch) net="--backbone resnet10t --stages 3 --output-stride 8 --epochs 60 --lr 0.01" ;;
esac
net="$net --dataset camvid --root $data --crop 200 264"
begin() { # begin SCRIPT RUN ARGS...: start a run, go on with it, or leave it when it has its results
    script=$1 run=$2; shift 2
    test -f "$run/results.json" && return
    if test -f "$run/last.pth.tar"; then $python "$script" --continue "$run"; else $python "$script" --out "$run" "$@"; fi
}
test -d $data || $python -m datasets camvid --root "$camvid" --short-side 180 --copy $data --splits splits/camvid-180
begin train_victim.py $runs/victim $net --train $splits/victim_in.txt --test $splits/victim_out.txt
if test "$partition" = dealt
then begin train_shadow.py $runs/shadow-dealt $net --train $splits/shadow_in.txt --test $splits/shadow_out.txt
else begin train_shadow.py $runs/shadow-confidence $net --split $splits/shadow.txt --victim $runs/victim/last.pth.tar
fi
attack() { # attack NAME ATTACKER ARGS...
    name=$1 attacker=$2; shift 2
    test -f "$setting/$name/results.json" && return
    $python attack.py --out "$setting/$name" -resume "$attacker" --victim $runs/victim/last.pth.tar --dataset camvid \
        --root $data --members $splits/victim_in.txt --non-members $splits/victim_out.txt -num-patch 10 "$@"
}
for seed in 0 1 2; do
    for input in loss concate; do
        run=$setting/attacker-$input-$seed
        begin train_attacker.py $run --shadow $runs/shadow-$partition -input $input --seed $seed --stride 2 --patch-size 45
        for select in full sliding random rejection; do
            attack $input-$select-$seed $run/best.pth.tar --select $select --seed $seed
        done
    done
done
for kind in confidence loss; do
    attack threshold-$kind-0 $setting/attacker-loss-0/best.pth.tar --threshold $kind
done
$python -m reproduce.table --collect $setting --victim $runs/victim --shadow $runs/shadow-$partition \
    --into reproduce/results/camvid-$regime-$split-$partition.json
