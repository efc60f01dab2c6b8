#!/bin/busybox sh
# The init of the machine in which KVM works (kvm_bed.py): first in the initramfs, then, called with `main`, in the root that it has made.
# busybox runs it. What it and the kernel print goes to the serial console, what the command prints to a file of the results.

in_initramfs() {
    /bin/busybox --install -s /bin
    export PATH=/bin
    mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
    for module in /modules/*; do insmod "$module" || echo "bed: $module is not loaded"; done
    set -e  # an init that ends is a panic, and that the machine's end
    share=trans=virtio,version=9p2000.L,msize=512000
    mount -t 9p -o $share,cache=loose,ro host /host
    mount -t tmpfs -o size=60% overlay /overlay
    mkdir /overlay/upper /overlay/work
    mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work overlay /new
    mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp /new/root /new/var/tmp "/new$disk" "/new$results"
    mount -t xfs /dev/vda "/new$disk"
    for each in proc sys dev; do mount -o move /$each /new/$each; done
    mkdir -p /new/dev/shm /new/dev/pts
    mount -t tmpfs -o mode=1777 shm /new/dev/shm
    mount -t tmpfs -o mode=755 run /new/run
    mount -t devpts -o ptmxmode=666 pts /new/dev/pts
    mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
    mount -t debugfs debugfs /new/sys/kernel/debug
    mount -t 9p -o $share,cache=none results "/new$results"
    mkdir -p -m 1777 "/new$disk/tmp"
    mount -o bind "/new$disk/tmp" /new/var/tmp
    [ -d "/new$home" ] || make_home
    # For callers that give rundctl no environment.
    mkdir -p /new/etc/rundctl
    printf 'home = "%s"\npatience = %s\n' "$home" "$patience" >/new/etc/rundctl/config.toml
    ifconfig lo up
    cd /new/sys/fs/cgroup
    mkdir init
    echo 1 >init/cgroup.procs
    sed 's/[^ ]*/+&/g' cgroup.controllers >cgroup.subtree_control
    cd /
    mkdir /new/run/bed
    cp /bin/busybox /init /settings /command /new/run/bed/
    exec switch_root /new /run/bed/busybox sh /run/bed/init main
}

make_home() {
    mkdir "/new$home"
    for each in kernels qemu; do
        [ ! -d "/host$host_home/$each" ] || ln -s "$host_home/$each" "/new$home/$each"
    done
}

# Not exec: the shell stays, and reaps what others leave. The code is moved into its place when it is whole.
in_root() {
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    busybox=/run/bed/busybox
    $busybox mount --make-rshared /
    ulimit -n 20000
    /bin/sh /run/bed/command </dev/null >"$results/printed" 2>&1
    code=$?
    echo $code >"$results/code.part" && $busybox mv "$results/code.part" "$results/code"
    echo o >/proc/sysrq-trigger
    $busybox sleep 60
}

if [ "$1" = main ]; then
    . /run/bed/settings
    in_root
else
    . /settings
    in_initramfs
fi
