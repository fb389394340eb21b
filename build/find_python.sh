#!/bin/sh
# Prints a Python 3.11 or 3.12 that can run the embedded Triton, or says what is missing.
# PYTHON=/path/to/python3.12 overrides the search.
set -u
fail() { echo "make: $*" >&2; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    fail "the embedded server is built for Linux on x86-64; this is $(uname -s) on $(uname -m). Use a container or a virtual machine."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)
[ -n "$glibc" ] || fail "glibc was not found (musl?); Triton needs glibc 2.35 or newer, for instance Debian 12 or Ubuntu 22.04."
printf '2.35\n%s\n' "$glibc" | sort -V -C ||
    fail "glibc $glibc is too old; Triton needs 2.35 or newer, for instance Debian 12 or Ubuntu 22.04."

reason="no python3.11 or python3.12 on PATH (Debian 12: apt install python3.11 python3.11-venv libpython3.11)"
for python in ${PYTHON:-python3.11 python3.12 python3}; do
    said=$("$python" - 2>/dev/null <<'EOF'
import sys, sysconfig, os
if sys.version_info[:2] not in ((3, 11), (3, 12)):
    raise SystemExit(0)
minor = "%d.%d" % sys.version_info[:2]
library = "libpython%s.so.1.0" % minor
folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib"),
           "/usr/lib/%s" % sysconfig.get_config_var("MULTIARCH"), "/usr/lib64"]
try:
    import ensurepip, venv
except ImportError:
    print("missing: python%s has no venv (Debian: apt install python%s-venv)" % (minor, minor))
    raise SystemExit(0)
if not any(f and os.path.isfile(os.path.join(f, library)) for f in folders):
    print("missing: %s for %s (Debian: apt install libpython%s)" % (library, sys.executable, minor))
    raise SystemExit(0)
print("ok " + sys.executable)
EOF
    )
    case $said in
        "ok "*) echo "${said#ok }"; exit 0 ;;
        "missing: "*) reason=${said#missing: } ;;
    esac
done
fail "$reason. PYTHON=/path/to/python names another one."
