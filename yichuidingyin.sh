#!/usr/bin/env bash
# 一锤定音. Finds its Python environment, or prepares it on the first run, then hands over to the package toolbox/.
#
#   bash yichuidingyin.sh [VERB …]            the menu, or one verb
#   bash yichuidingyin.sh --prepare [LOCK …]  only prepare the environment, with further locks on top (`dev`)
#   bash yichuidingyin.sh --rollback          take back the last change of the environment, and keep it so
#   bash yichuidingyin.sh --pin               keep the environment as it is, whatever the locks say; --prepare ends it
#
# YCDY_ENV     the environment; by default .venv here, or HOME/env where this folder can't be written
# YCDY_LOCK    what goes into it: a name in locks/; by default cuda where an NVIDIA GPU answers, else cpu
# YCDY_PYTHON  the Python 3.11 to make it with
# Runs in the bash 3.2 of macOS too.
set -euo pipefail

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Published as source only, in whichever lock they stand; the Makefile names them too.
WITHOUT_WHEELS='llama-cpp-python|jieba|langdetect|rouge-score|sqlitedict|word2number|zhconv'
unset PYTHONHOME PYTHONPATH CDPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIREMENT PIP_CONSTRAINT
# Else a random.py of the folder it is started in would be imported for Python's own.
export PYTHONSAFEPATH=1
umask go-w
script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do
  link=$(readlink "$script")
  case $link in /*) script=$link ;; *) script=$(dirname -- "$script")/$link ;; esac
done
case $script in */*) root=$(cd -- "${script%/*}" && pwd -P) ;; *) root=$(pwd -P) ;; esac

# An environment keeps a copy of each lock it was installed from, written last: one `cmp` says whether it still holds.
holds() { # ENV LOCK
  cmp -s "$root/locks/$2.txt" "$1/locks/$2.txt"
}

prepared() { # ENV
  [ -x "$1/bin/python" ] || return 1
  if [ -f "$1/pinned" ]; then return 0; fi
  local lock
  for lock in ${YCDY_LOCK:-cpu cuda macos}; do
    if [ -f "$1/locks/$lock.txt" ] && holds "$1" "$lock"; then return 0; fi
  done
  return 1
}

hand_over() { # ENV WORD…
  local python=$1/bin/python
  shift
  unset PYTHONSAFEPATH
  PYTHONPATH=$root YCDY_CALLED=$0 exec "$python" -P -m toolbox "$@"
}

words=" $* "
language() {
  local chosen=${YCDY_LANG:-${LC_ALL:-${LC_MESSAGES:-${LANG:-}}}}
  case $words in
    *" --lang zh "* | *" --lang=zh "*) chosen=zh ;;
    *" --lang en "* | *" --lang=en "*) chosen=en ;;
  esac
  case $chosen in zh* | ZH*) echo zh ;; *) echo en ;; esac
}

say() { # CHINESE ENGLISH
  if [ "$(language)" = zh ]; then printf '%s\n' "$1" >&2; else printf '%s\n' "$2" >&2; fi
}

json_text() { # TEXT
  local text=${1//\\/\\\\}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//\"/\\\"}"
}

# The same shape as the errors of the Python side, `--json` included.
complain() { # STATUS CHINESE REMEDY ENGLISH REMEDY
  local status=$1 message=$4 remedy=$5 kind=input
  if [ "$(language)" = zh ]; then message=$2 remedy=$3; fi
  [ "$status" = 2 ] || kind=failed
  printf '✗ %s\n  → %s\n' "$message" "$remedy" >&2
  case $words in *" --json "*)
    printf '{"error":{"kind":"%s","message":%s,"remedy":%s}}\n' \
      "$kind" "$(json_text "$message")" "$(json_text "$remedy")"
    ;;
  esac
  exit "$status"
}

find_python() {
  local candidate without_venv=''
  for candidate in ${YCDY_PYTHON:+"$YCDY_PYTHON"} python3.11 python3 python; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      python=$candidate
      return
    fi
    without_venv=$candidate
  done
  [ -z "$without_venv" ] || complain 2 \
    "$without_venv 缺少 venv 模块。" "请先安装：apt install python3.11-venv。" \
    "$without_venv has no venv module." "Install it: apt install python3.11-venv."
  complain 2 \
    "找不到 Python 3.11。" \
    "请安装 Python 3.11（如 apt install python3.11 python3.11-venv），或用 YCDY_PYTHON 指明它的位置。" \
    "There is no Python 3.11." \
    "Install it (apt install python3.11 python3.11-venv, say), or name it in YCDY_PYTHON."
}

choose_lock() {
  lock=${YCDY_LOCK:-}
  if [ -z "$lock" ]; then
    case "$(uname -s) $(uname -m)" in
      "Linux x86_64") if nvidia-smi -L >/dev/null 2>&1; then lock=cuda; else lock=cpu; fi ;;
      "Darwin arm64") lock=macos ;;
      *) complain 2 \
        "没有适用于这台机器（$(uname -sm)）的依赖锁文件。" "请用 YCDY_ENV 指明一个自备的环境。" \
        "There is no lock for this machine ($(uname -sm))." "Name an environment of your own in YCDY_ENV." ;;
    esac
  fi
  [ -f "$root/locks/$lock.txt" ] || complain 2 \
    "没有名为 $lock 的锁文件。" "YCDY_LOCK 可取 locks/ 里的名字，如 cpu、cuda。" \
    "There is no lock named $lock." "YCDY_LOCK takes a name in locks/, such as cpu or cuda."
}

check_disk() { # FOLDER
  local need_gb=4 free_kb
  case $lock in cpu | macos | llamacpp | evalscope | *-cpu) ;; *) need_gb=12 ;; esac
  free_kb=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
  [ "${free_kb:-0}" -ge $((need_gb * 1024 * 1024)) ] || complain 2 \
    "磁盘空间不足：$1 剩余 $((free_kb / 1024)) MB，准备环境需要 $need_gb GB。" "请清理磁盘，或用 YCDY_ENV 把环境放到别的磁盘。" \
    "The disk is too small: $1 has $((free_kb / 1024)) MB free, the environment takes $need_gb GB." \
    "Free some space, or put the environment on another disk with YCDY_ENV."
}

# One preparing at a time. The lock belongs to the open descriptor, which this shell and pip share:
# however they die, the system lets go of it, and a second start never takes over from a pip that still runs.
lock_folder() { # FOLDER
  exec 9<"$1"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "另一个进程正在准备环境，等它完成……" "Another start is preparing the environment; waiting for it …"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

# PyTorch's own index of CPU builds, only where pip's configuration leads to none and that index answers.
cpu_index() { # ENV
  local build
  build=$(sed -n 's/^torch==\([^ ]*+cpu\).*/\1/p' "$root/locks/$lock.txt")
  [ -n "$build" ] || return 0
  if "$1/bin/python" -m pip index versions --retries 1 torch 2>/dev/null | grep -qF "$build"; then return 0; fi
  if "$1/bin/python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/torch/", timeout=4)' \
    "$TORCH_CPU_INDEX" 2>/dev/null; then printf '%s' "$TORCH_CPU_INDEX"; fi
}

explain_pip() { # LOG
  local network='NewConnectionError|Failed to establish a new connection|NameResolutionError|ConnectTimeoutError'
  if grep -qE 'No space left on device|Errno 28' "$1"; then complain 2 \
    "准备环境时磁盘写满了。" "请清理磁盘后重新运行。" \
    "The disk became full while preparing." "Free some space, then start again."
  elif grep -qE "$network|ReadTimeoutError|ProxyError|SSLError" "$1"; then complain 2 \
    "连不上软件包源：没有网络，或该源不通。" "请检查网络、代理或 pip 的镜像设置后重新运行；日志：$1" \
    "The package index can't be reached: there is no network, or that index is down." \
    "Check the network, the proxy or pip's mirror setting, then start again; log: $1"
  elif grep -q 'DO NOT MATCH THE HASHES' "$1"; then complain 1 \
    "下载到的软件包与锁文件的哈希不符，已拒绝。" "请换一个软件包源后重新运行；日志：$1" \
    "A package does not match the hash in the lock, and was refused." \
    "Use another package index, then start again; log: $1"
  fi
  complain 1 "准备环境失败。" "原因见日志：$1" "Preparing the environment failed." "The log says why: $1"
}

install() { # ENV LOCK
  holds "$1" "$2" && return
  local lock_file=$root/locks/$2.txt log=$1/$2.log count index='' fresh='' interrupted='' bar=off sources pip
  [ ! -t 2 ] || bar=on
  [ -d "$1/locks" ] || fresh=yes
  count=$(grep -c '==' "$lock_file")
  say "正在安装 locks/$2.txt（$count 个软件包）……" "Installing locks/$2.txt ($count packages) …"
  : >"$1/preparing"
  : >"$log"
  "$1/bin/python" -m pip --version >/dev/null 2>&1 || "$1/bin/python" -m ensurepip >&2
  index=$(lock=$2 cpu_index "$1")
  trap 'interrupted=yes' INT
  # --no-deps and the hashes: exactly what the lock says, nothing else; wheels only, so nothing is built or run.
  # But for what has no wheels: that is built by packages of the same lock, which are installed before it.
  sources=$(sort_out "$1" "$lock_file")
  pip=("$1/bin/python" -m pip install --require-hashes --no-deps --no-input --disable-pip-version-check
    --progress-bar "$bar" --log "$log" ${index:+--extra-index-url "$index"} --only-binary :all:)
  if { [ -s "$1/wheels.txt" ] && ! "${pip[@]}" -r "$1/wheels.txt" >&2; } || { [ -n "$sources" ] &&
    ! PATH=$1/bin:$PATH "${pip[@]}" --no-binary "$sources" --no-build-isolation -r "$1/sources.txt" >&2; }; then
    # pip takes back a failed change, so what was there before still holds.
    [ -n "$fresh" ] || rm -rf "$1/preparing" "$1.kept"
    [ -z "$interrupted" ] || exit 130
    explain_pip "$log"
  fi
  trap - INT
  mkdir -p "$1/locks"
  cp "$lock_file" "$1/locks/.$2.$$"
  mv "$1/locks/.$2.$$" "$1/locks/$2.txt"
  record "$1" "$2"
  rm -f "$1/preparing" "$1/wheels.txt" "$1/sources.txt" "$log"
}

# What of the lock is not there yet: ENV/wheels.txt, and ENV/sources.txt of those that have to be built, whose names it
# prints. pip would say of each of the others that it is there.
sort_out() { # ENV LOCK_FILE
  "$1/bin/python" -c 'import importlib.metadata, pathlib, re, sys
env, lock, without_wheels = sys.argv[1:]
there = {(re.sub("[-_.]+", "-", str(one.name)).lower(), one.version) for one in importlib.metadata.distributions()}
wanted = re.findall(r"(?m)^(([\w.-]+)(?:\[.*?\])?==(\S+).*\n(?:[ #].*\n)*)", pathlib.Path(lock).read_text() + "\n")
missing = [(text, name) for text, name, version in wanted if (re.sub("[-_.]+", "-", name).lower(), version) not in there]
built = [name for _, name in missing if name in without_wheels.split("|")]
for part, its in (("wheels", False), ("sources", True)):
    pathlib.Path(env, part + ".txt").write_text("".join(text for text, name in missing if (name in built) is its))
print(",".join(built))' "$1" "$2" "$WITHOUT_WHEELS"
}

# A line for each change: when, which lock and its SHA-256, and for which version of the toolbox.
record() { # ENV LOCK
  "$1/bin/python" -c 'import datetime, hashlib, pathlib, re, sys
env, lock, root = sys.argv[1:]
digest = hashlib.sha256(pathlib.Path(env, "locks", lock + ".txt").read_bytes()).hexdigest()
source = pathlib.Path(root, "toolbox", "__init__.py")
found = re.search(r"__version__ = \"(.+?)\"", source.read_text() if source.is_file() else "")
when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
with open(pathlib.Path(env, "history.tsv"), "a") as file:
    file.write("\t".join((when, lock, digest, found[1] if found else "?")) + "\n")' "$1" "$2" "$root"
}

# Keeps the environment as it is before a change, as links to the same files, which cost next to nothing: pip writes
# new files and never into old ones.
keep() { # ENV
  rm -rf "$1.kept" "$1.keeping"
  "$python" -c 'import os, shutil, sys
def link(source, copy):
    try:
        return os.link(source, copy)
    except OSError:
        return shutil.copy2(source, copy)
shutil.copytree(sys.argv[1], sys.argv[2], symlinks=True, copy_function=link)
history = os.path.join(sys.argv[2], "history.tsv")  # the one file that is appended to
if os.path.exists(history):
    os.unlink(history)
    shutil.copy2(os.path.join(sys.argv[1], "history.tsv"), history)' "$1" "$1.keeping"
  mv "$1.keeping" "$1.kept"
}

changed() { # ENV
  if [ -d "$1.kept" ]; then
    rm -rf "$1.before"
    mv "$1.kept" "$1.before"
  fi
}

# Where a change was cut off, what was there before it takes its place again.
recover() { # ENV
  if [ -f "$1/preparing" ] && [ -x "$1.kept/bin/python" ]; then
    rm -rf "$1"
    mv "$1.kept" "$1"
  fi
}

rollback() { # ENV
  [ -x "$1.before/bin/python" ] || complain 2 \
    "没有可退回的环境：$1 自创建以来没有变过，或已经退回过。" "上一个版本的代码用 git checkout 取回。" \
    "There is nothing to go back to: $1 has not changed since it was made, or was taken back already." \
    "An earlier version of the code comes back with git checkout."
  rm -rf "$1.undone"
  mv "$1" "$1.undone"
  mv "$1.before" "$1"
  mv "$1.undone" "$1.before"
  rm -f "$1/pinned"
  prepared "$1" || : >"$1/pinned"
  say "已退回到上一个环境：$1。它固定不变，直到 --prepare；再次 --rollback 则换回来。" \
    "Back to the environment before: $1. It stays as it is until --prepare; --rollback once more undoes this."
}

# Makes ENV hold the locks. Where an earlier start was cut off, or its Python is gone, it is made anew.
prepare() { # ENV [FURTHER LOCK…]
  local env=$1 folder lock python other
  shift
  folder=$(dirname -- "$env")
  find_python
  choose_lock
  mkdir -p "$folder" 2>/dev/null || complain 2 \
    "无法创建文件夹 $folder。" "请用 YCDY_HOME 或 YCDY_ENV 指定一个可写的位置。" \
    "The folder $folder can't be made." "Name a place that can be written in YCDY_HOME or YCDY_ENV."
  lock_folder "$folder"
  recover "$env"
  if ! prepared "$env"; then
    rmdir "$env" 2>/dev/null || true
    [ ! -e "$env" ] || [ -d "$env/locks" ] || [ -f "$env/preparing" ] || complain 2 \
      "$env 不是本脚本创建的环境，未作改动。" "请移走它；若要直接使用它，请设 YCDY_ENV=$env。" \
      "$env was not made by this script, and is left alone." "Move it away; to use it as it is, set YCDY_ENV=$env."
    say "首次运行：正在准备环境 $env（$lock），约需一两分钟，只做一次。" \
      "First start: preparing the environment $env ($lock); a minute or two, only once."
    if [ -f "$env/preparing" ] || [ ! -x "$env/bin/python" ]; then create "$env"; else keep "$env"; fi
    install "$env" "$lock"
    changed "$env"
    for other in cpu cuda macos; do [ "$other" = "$lock" ] || rm -f "$env/locks/$other.txt"; done
  fi
  for other in "$@"; do install "$env" "$other"; done
  exec 9<&-
}

create() { # ENV
  check_disk "$(dirname -- "$1")"
  # The mark is there before, and until after, anything that could be taken for an environment.
  mkdir -p "$1"
  : >"$1/preparing"
  find "$1" -mindepth 1 -maxdepth 1 ! -name preparing -exec rm -rf {} +
  "$python" -m venv "$1" >&2 || complain 1 \
    "创建 Python 环境失败。" "请查看上面的输出。" "Making the Python environment failed." "See the output above."
}

own=$root/.venv
user=${YCDY_HOME:-~/yichuidingyin}/env
if [ -n "${YCDY_ENV:-}" ]; then
  env=$YCDY_ENV
elif prepared "$own" || [ -w "$root" ]; then
  env=$own
else
  env=$user
fi
case $env in /*) ;; *) env=$PWD/$env ;; esac

case ${1:-} in --rollback | --pin)
  [ -x "$env/bin/python" ] || complain 2 \
    "还没有环境：$env。" "先准备一个：--prepare。" "There is no environment yet: $env." "Prepare one: --prepare."
  find_python
  lock_folder "$(dirname -- "$env")"
  if [ "$1" = --pin ]; then : >"$env/pinned"; else rollback "$env"; fi
  exit
  ;;
esac
if [ "${1:-}" = --prepare ]; then
  shift
  rm -f "$env/pinned"
  for further in "$@"; do [ -f "$root/locks/$further.txt" ] || YCDY_LOCK=$further choose_lock; done
  prepare "$env" "$@"
  exit
fi
if [ -n "${YCDY_ENV:-}" ]; then
  [ -x "$env/bin/python" ] || complain 2 \
    "YCDY_ENV 指向的 $env 里没有 Python。" "请改正 YCDY_ENV，或去掉它，让本脚本自行准备环境。" \
    "There is no Python in $env, which YCDY_ENV names." "Correct YCDY_ENV, or unset it to have an environment prepared."
elif ! prepared "$env"; then
  prepare "$env"
fi
hand_over "$env" "$@"
