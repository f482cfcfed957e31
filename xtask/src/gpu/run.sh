#!/bin/sh
# Checks what Footlight promises of a GPU: on this machine, with the libtorch that is here. Nothing is installed.
#
#   sh run.sh                       all checks on cuda:0; the report is report.json in the current folder
#   sh run.sh --only step,bits      some of them
#   sh run.sh --device cpu          the program itself, where there is no GPU
#   sh run.sh --help                all options
#
# libtorch is the folder that LIBTORCH names, or else that of python3's package torch (PYTHON names another python3).
set -eu

wanted=@VERSION@
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
    echo "error: $1" >&2
    exit 2
}

if [ -n "${LIBTORCH:-}" ]; then
    torch=$LIBTORCH
    source="LIBTORCH"
else
    python=${PYTHON:-python3}
    source="the package torch of $python"
    torch=$("$python" -c 'import importlib.util as i; print(i.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) ||
        fail "there is no libtorch here: set LIBTORCH to the folder of a libtorch $wanted, or install PyTorch $wanted for $python"
fi
[ -f "$torch/lib/libtorch_cpu.so" ] ||
    fail "$source is $torch, which has no lib/libtorch_cpu.so"

if [ -f "$torch/build-version" ]; then
    version=$(cat "$torch/build-version")
elif [ -f "$torch/version.py" ]; then
    version=$(sed -n "s/^__version__ = ['\"]\(.*\)['\"].*/\1/p" "$torch/version.py")
else
    version=unknown
fi
[ "${version%%+*}" = "$wanted" ] ||
    fail "$source is $torch, which is libtorch $version and not $wanted"

case " $* " in
*" --device cpu "* | *" --device=cpu "* | *" --help "* | *" -h "*) ;;
*)
    [ -f "$torch/lib/libtorch_cuda.so" ] ||
        fail "$source is $torch, a libtorch $version without CUDA; --device cpu checks the program itself"
    ;;
esac

LD_LIBRARY_PATH=$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/footlight-gpu" --data "$here/data" "$@"
