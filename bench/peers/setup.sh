#!/usr/bin/env bash
# Install every peer of the benchmarks into a folder of its own, beside nothing of the project's:
#
#     bench/peers/setup.sh [FOLDER]            default: /tmp/peers, where the benchmarks look
#
# A peer that does not install is reported, the others go on, and its benchmarks call it absent.
# Packages that the project has are left out of the folders: every contender runs on the same torch,
# NumPy and Pillow. torchvision, DALI, webdataset, simplejpeg and Pillow are the project's own.
#
# FFCV is built from source and needs a C++ compiler; SPDL needs the libraries of FFmpeg (4 to 9).
# Once and as root, on Debian 12:
#     apt-get install pkg-config libturbojpeg0-dev libopencv-dev libavdevice59 libavfilter8
set -u

folder=${1:-/tmp/peers}
root=$(cd "$(dirname "$0")/../.." && pwd)
uv=$root/.venv/bin/uv
python=$root/.venv/bin/python
present=$(mktemp)
trap 'rm -f "$present"' EXIT
"$uv" pip freeze --python "$python" --exclude-editable | sed 's/[=@ ].*//' > "$present"
absent=()

install() {  # NAME CODE ARGUMENT...: packages into FOLDER/NAME, and whether CODE runs with them
    local name=$1 code=$2 log=$folder/$1.log
    shift 2
    mkdir -p "$folder/$name"
    echo "$name ..."
    if "$uv" pip install --python "$python" --target "$folder/$name" "$@" > "$log" 2>&1 &&
        PYTHONPATH="$folder/$name" "$python" -c "$code" >> "$log" 2>&1; then
        echo "$name: ready"
    else
        echo "$name: absent: $(tail -n 1 "$log")"
        absent+=("$name (log: $log)")
    fi
}

install ffcv 'import ffcv.loader' --no-deps --no-build-isolation ffcv 'opencv-python-headless<5' \
    assertpy fastargs imgcat terminaltables pytorch-pfn-extras
install img2dataset 'import albumentations' --no-deps img2dataset 'opencv-python-headless<5' \
    'albumentations<2' albucore==0.0.23 pydantic pydantic-core annotated-types \
    typing-inspection stringzilla simsimd
install spdl 'from spdl.io.utils import get_ffmpeg_versions as f; f()' --excludes "$present" spdl
install litdata 'import litdata' --excludes "$present" litdata
# Its transformers wants an older huggingface-hub than the project has.
sed -i '/^huggingface/d' "$present"
install streaming 'import streaming' --excludes "$present" mosaicml-streaming

if [ ${#absent[@]} -eq 0 ]; then
    echo "all peers are in $folder"
else
    printf 'absent: %s\n' "${absent[@]}"
fi
