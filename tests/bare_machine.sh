#!/bin/sh
# Proves that `make run` works on a machine that has nothing: a fresh Debian root with only python3, python3-venv,
# make, git and ca-certificates in it (no java, mvn, node, npm, uv), as root and as an ordinary user.
#
#   sudo tests/bare_machine.sh [--working-tree] [root] [user]
#
# It tests a clone of the last commit; --working-tree takes the files as they are now. DEBOOTSTRAP_MIRROR names a
# Debian mirror. Certificates in /usr/local/share/ca-certificates and in SSL_CERT_FILE are trusted inside as well.
# The root lives in a mount and process namespace of its own: when this script ends, however it ends, the kernel
# takes its mounts and processes along. The folder is removed too, unless the script was killed with SIGKILL.
set -eu

checkout=$(cd "$(dirname -- "$0")/.." && pwd)
packages=python3,python3-venv,make,git,ca-certificates
source=clone
people=

for argument in "$@"; do
    case $argument in
    --working-tree) source=working-tree ;;
    root | user) people="$people $argument" ;;
    *)
        sed -n '2,11s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
done
people=${people:-root user}

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "This needs root: sudo $0"
for tool in debootstrap unshare setpriv git tar; do
    command -v "$tool" >/dev/null || fail "This needs $tool; install it, for example: apt-get install $tool"
done

folder=$(mktemp -d /var/tmp/relaydesk-bare.XXXXXX)
inside=
clean_up() {
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$inside" ]; then
        kill -KILL "$inside" 2>/dev/null || true # --kill-child takes everything inside along
        wait "$inside" 2>/dev/null || true
    fi
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() {
    printf '%5d s  %s\n' "$(($(date +%s) - begun))" "$1"
}

begun=$(date +%s)
root=$folder/root
say "Making a Debian root with $packages"
debootstrap --variant=minbase --include="$packages" bookworm "$root" ${DEBOOTSTRAP_MIRROR:+"$DEBOOTSTRAP_MIRROR"} \
    >"$folder/debootstrap.log" 2>&1 || {
    tail -n 20 "$folder/debootstrap.log" >&2
    fail "debootstrap failed."
}
say "It is there ($(du -sm "$root" | cut -f 1) MB)"

cp /etc/resolv.conf /etc/hosts "$root/etc/"
if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
fi
if [ -n "${SSL_CERT_FILE:-}" ]; then
    # Split into single certificates, as update-ca-certificates wants them.
    awk -v folder="$root/usr/local/share/ca-certificates" '
        /BEGIN CERTIFICATE/ { n++ } n { print > (folder "/host-" n ".crt") }' "$SSL_CERT_FILE"
fi
chroot "$root" update-ca-certificates >/dev/null 2>&1

chroot "$root" useradd --create-home user
for person in $people; do
    home=/home/user
    [ "$person" = user ] || home=/root
    target="$root$home/relay desk"
    if [ "$source" = clone ]; then
        git clone --quiet --no-hardlinks "$checkout" "$target"
    else
        mkdir "$target"
        (cd "$checkout" && git ls-files -z --cached --others --exclude-standard |
            tar --create --null --files-from - --ignore-failed-read 2>/dev/null) | tar --extract --directory "$target"
    fi
    chroot "$root" chown -R "$person" "$home"
done
cp "$checkout/tests/support/bare_machine.py" "$root/usr/local/lib/bare_machine.py"

for tool in java mvn node npm uv curl psql redis-server; do
    if chroot "$root" sh -c "command -v $tool" >/dev/null; then fail "$tool is inside; the root is not bare."; fi
done

# Mounts of its own, processes of its own; proc shows only the latter.
for person in $people; do
    say "make run as $person"
    mkdir -p "$root/dev/shm"
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child=KILL sh -c '
        set -eu
        mount -t proc proc "$1/proc"
        mount -t sysfs -o ro sysfs "$1/sys"
        mount -t tmpfs -o mode=755 tmpfs "$1/dev"
        for device in null zero full random urandom tty; do
            : >"$1/dev/$device"
            mount --bind "/dev/$device" "$1/dev/$device"
        done
        mkdir "$1/dev/pts" "$1/dev/shm"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$1/dev/pts"
        ln -s pts/ptmx "$1/dev/ptmx"
        ln -s /proc/self/fd "$1/dev/fd"
        mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
        home=/root
        [ "$2" = root ] || home=/home/user
        exec chroot --userspec="$2" "$1" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            HOME="$home" USER="$2" TERM=xterm-256color PIP_DEFAULT_TIMEOUT=120 \
            ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
            ${no_proxy:+no_proxy="$no_proxy"} SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
            PIP_CERT=/etc/ssl/certs/ca-certificates.crt REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
            python3 /usr/local/lib/bare_machine.py "$home/relay desk"
    ' sh "$root" "$person" </dev/null &
    inside=$!
    wait "$inside" || fail "make run as $person: failed."
    inside=
done
say "All is well"
