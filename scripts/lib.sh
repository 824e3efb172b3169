# What the scripts share. Sourced from the top of the checkout.

# Nothing that a script runs starts a tor that joins the public network.
export PERFD_PRIVATE_TORS_ONLY=1

me=$(basename -- "$0")

say() { printf '%s: %s\n' "$me" "$*" >&2; }
fail() { say "$@"; exit 1; }
is_debian() { command -v apt-get dpkg > /dev/null 2>&1 && [[ -r /etc/debian_version ]]; }

# cargo of the user who called sudo, and a C compiler for the bundled SQLite.
need_toolchain() {
    if ! command -v cargo > /dev/null; then
        local home=''
        [[ -z ${SUDO_USER:-} ]] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        local candidate
        for candidate in "$home/.cargo/bin" "$HOME/.cargo/bin"; do
            if [[ -x $candidate/cargo ]]; then export PATH=$candidate:$PATH; fi
        done
    fi
    command -v cargo > /dev/null || fail "needs a Rust toolchain, 1.95 or later (rustup installs one); there is no cargo in PATH"
    command -v cc > /dev/null && return
    is_debian || fail "needs a C compiler (cc), for the bundled SQLite; please install one"
    [[ $(id -u) -eq 0 ]] || fail "needs a C compiler; run: sudo apt-get install gcc libc6-dev"
    say "installing a C compiler"
    apt_install gcc libc6-dev
}

# A C++ compiler, for the fuzzer's own library.
need_cxx() {
    command -v c++ > /dev/null && return
    is_debian || fail "needs a C++ compiler (c++); please install one"
    [[ $(id -u) -eq 0 ]] || fail "needs a C++ compiler; run: sudo apt-get install g++"
    say "installing a C++ compiler"
    apt_install g++
}

# A tool of cargo's from PATH, or built once for all checkouts of this user.
#   cargo_tool NAME VERSION [ARGUMENTS OF cargo install]
cargo_tool() {
    local name=$1 version=$2
    shift 2
    command -v "$name" && return
    local tools=${XDG_CACHE_HOME:-$HOME/.cache}/perfd-tools
    if [[ ! -x $tools/bin/$name ]]; then
        say "building $name $version (once, some minutes)"
        cargo install --quiet --locked --version "$version" --root "$tools" "$@" "$name" >&2 ||
            fail "cannot build $name; or put $name into PATH"
    fi
    printf '%s\n' "$tools/bin/$name"
}

apt_install() {
    local log
    log=$(DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@" 2>&1) && return
    apt-get -qq update >&2
    log=$(DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@" 2>&1) ||
        fail "apt-get can't install $*: $log"
}

# Under sudo, the checkout stays its owner's: whoever called sudo builds, and owns what is built.
owner_by_sudo() {
    local owner
    owner=$(stat -c %U .)
    [[ $(id -u) -eq 0 && $owner != root && $owner == "${SUDO_USER:-}" ]] && printf '%s\n' "$owner"
}

build_release() {
    local owner
    if owner=$(owner_by_sudo); then
        install -d -o "$owner" "$(target_directory)"
        runuser -u "$owner" -- env PATH="$PATH" HOME="$(getent passwd "$owner" | cut -d: -f6)" cargo build --release --locked
    else
        cargo build --release --locked
    fi
}

target_directory() { printf '%s\n' "${CARGO_TARGET_DIR:-$PWD/target}"; }
