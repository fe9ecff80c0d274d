#!/bin/sh
# Installs what the tests run for real, where that is possible: as root, with apt. Elsewhere the tests that miss something are
# skipped, and pytest's summary names the reason. Nothing of it is needed to run event-bridge itself.
set -eu

missing=""
while read -r program package; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $package"
done <<LIST
dockerd docker.io
mosquitto mosquitto
mosquitto_pub mosquitto-clients
promtool prometheus
prometheus-alertmanager prometheus-alertmanager
debootstrap debootstrap
kcat kcat
openssl openssl
java default-jre-headless
strace strace
nginx nginx-light
haproxy haproxy
socat socat
mvn maven
LIST
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"
[ -e /bin/busybox ] || missing="$missing busybox-static"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "some tests will be skipped, since these packages are not installed:$missing"
    exit 0
fi
echo "installing for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
# The tests start what they need, on ports of their own. The packages would start services for everybody, some on all interfaces.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
apt-get update -qq
# shellcheck disable=SC2086 # The words are the packages.
apt-get install -y -qq --no-install-recommends $missing >/dev/null || echo "could not install all of:$missing; some tests will be skipped"
