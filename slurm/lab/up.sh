#!/bin/bash
# A whole SLURM on this machine, to try things on: up.sh [DIRECTORY]. Debian as root; everything listens on loopback.
# Nodes are virtual and GPUs fake, so jobs run here, one beside the other. LAB_NODES, LAB_GPUS, LAB_CPUS: how many nodes,
# and of what each; LAB_PORT: the first of 1100 ports. Then: source DIRECTORY/env.sh. It ends by down.sh [DIRECTORY].
set -euo pipefail
lab=$(realpath -m "${1:-/tmp/marginalia-lab}")
nodes=${LAB_NODES:-4} gpus=${LAB_GPUS:-8} cpus=${LAB_CPUS:-16} port=${LAB_PORT:-26000}
die() {
  echo "lab: $*" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || die "it starts daemons that act for users, so it must be run as root"
host=$(hostname -s)
# daemons listen where the host's name leads
[[ $(getent ahostsv4 "$host" | awk 'NR==1 {print $1}') == 127.* ]] ||
  die "$host leads to a network, and the lab is for loopback alone: put '127.0.0.1 $host' into /etc/hosts"

if ! command -v slurmctld slurmd munged >/dev/null; then
  command -v apt-get >/dev/null || die "slurm-wlm and munge are not installed, and there is no apt-get"
  echo "lab: installing slurm-wlm and munge"
  policy=/usr/sbin/policy-rc.d # without it Debian starts the daemons with its own settings
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge; } \
    >/dev/null 2>&1 || die "apt-get cannot install slurm-wlm and munge"
fi

[ ! -e "$lab/env.sh" ] || "$(dirname "$0")/down.sh" "$lab" # one that was left behind, of other settings perhaps
mkdir -p "$lab"/{state,spool,log,munge,dev}
for node in $(seq "$nodes"); do
  for gpu in $(seq 0 $((gpus - 1))); do mknod -m 666 "$lab/dev/node$node-gpu$gpu" c 1 3; done
  [ "$gpus" = 0 ] || echo "NodeName=node$node Name=gpu Type=a100 File=$lab/dev/node$node-gpu[0-$((gpus - 1))]"
done >"$lab/gres.conf"
echo "CgroupPlugin=cgroup/v1" >"$lab/cgroup.conf"
cat >"$lab/slurm.conf" <<END
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SrunPortRange=$((port + 100))-$((port + 1099))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket=$lab/munge/socket,cred_expire=${LAB_REQUEUE_AFTER:-5}
SlurmUser=root
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool/%n
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd-%n.pid
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0,bf_resolution=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
KillWait=5
MinJobAge=3600
MessageTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
$(for node in $(seq "$nodes"); do
  echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$cpus RealMemory=65536" \
    "$([ "$gpus" = 0 ] || echo "Gres=gpu:a100:$gpus")"
done)
PartitionName=gpu Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=${LAB_GRACE:-60}
END
cat >"$lab/env.sh" <<END
export SLURM_CONF=$lab/slurm.conf GLOO_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
END
# shellcheck source=/dev/null
. "$lab/env.sh"
# the nodes' names lead here
sed "/# $(basename "$lab")\$/d" /etc/hosts >"$lab/hosts"
echo "127.0.0.1 $(seq -s ' ' -f 'node%g' "$nodes") # $(basename "$lab")" >>"$lab/hosts"
cat "$lab/hosts" >/etc/hosts

chmod 711 "$lab/munge" # munged wants its folder to be closed to others
[ -s "$lab/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$lab/munge/key")
munged --force --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munged.pid" \
  --log-file="$lab/log/munged.log" --seed-file="$lab/munge/seed" 2>/dev/null || die "munged: see $lab/log"
slurmctld -i -c >/dev/null 2>&1 || die "slurmctld: see $lab/log"
for node in $(seq "$nodes"); do
  mkdir -p "$lab/spool/node$node"
  slurmd -N "node$node" || die "slurmd: see $lab/log"
done
for _ in $(seq 100); do
  up=$(timeout 5 sinfo --noheader --Node --partition=gpu --states=idle --format=%N 2>/dev/null | wc -l)
  [ "$up" != "$nodes" ] || exit 0
  sleep 0.1
done
die "only $up of $nodes nodes came up: see $lab/log"
