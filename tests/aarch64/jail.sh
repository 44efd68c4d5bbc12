# jail.sh ROOT CPU QEMU COMMAND... : the command on an emulated aarch64 processor, in ROOT. Runs in namespaces that
# `unshare --user --map-root-user --mount --pid --fork` made: every mount and the kernel's entry for aarch64 programs
# (binfmt_misc, which a user namespace has of its own since Linux 6.7) end with them, and nothing outside sees any.
# What enters the namespaces of a running jail (nsenter) finds all mounted.
set -eu
root=$1 cpu=$2 qemu=$3
shift 3
if ! mountpoint -q "$root/proc"; then
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  # F: the kernel opens the emulator now, so that children in ROOT are run by it too.
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":qemu-aarch64:M::$magic:$mask:$qemu:F" >/proc/sys/fs/binfmt_misc/register
  mount -t proc proc "$root/proc"
  # Without this, qemu shows this machine's processor, and onnxruntime chooses kernels for it that the emulated one lacks.
  mount --bind "$root/opt/cpuinfo/$cpu" "$root/proc/cpuinfo"
  mount --bind "$root/opt/sys" "$root/sys"
  mount --rbind /dev "$root/dev"
fi
exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="$cpu" OMP_NUM_THREADS=1 \
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="${EMULATED_PYTHONPATH:-/opt/site}" "$@"
