#!/usr/bin/env python3
"""Make the two files that `adb:[serial]` needs: edgeopt's native runner, and ONNX Runtime's library for the phone.

For a phone it takes Android's NDK and the AAR of onnxruntime-android (com.microsoft.onnxruntime on Maven Central):

    tools/build_runner.py --cc $NDK/toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang
                          --aar onnxruntime-android-1.23.0.aar --out runner

Without --cc and --aar it is made for this machine's own processor, with the library of the installed onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent / "runner" / "runner.c"


def installed_library() -> Path:
    """Return the library inside the onnxruntime package, without importing it."""
    package = importlib.util.find_spec("onnxruntime")
    found = [] if package is None else sorted(Path(str(package.origin)).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        sys.exit("no onnxruntime package here: name the phone's library with --library or --aar")
    return found[0]


def main() -> None:
    """Compile the runner and copy the library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for `runner` and `libonnxruntime.so`")
    parser.add_argument("--cc", default="cc", help="the C compiler for the phone's processor")
    parser.add_argument("--library", type=Path, help="a libonnxruntime.so for it")
    parser.add_argument("--aar", type=Path, help="the AAR of onnxruntime-android, to take the library from")
    parser.add_argument("--abi", default="arm64-v8a", help="which one of the AAR's")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runner, library = options.out / "runner", options.out / "libonnxruntime.so"
    if shutil.which(options.cc) is None:
        sys.exit(f"there is no C compiler '{options.cc}': name one for the phone's processor with --cc")
    compiled = subprocess.run(
        [options.cc, "-std=gnu11", "-O2", "-Wall", "-Wextra", SOURCE, "-o", runner, "-pthread", "-ldl", "-lm"],
        check=False,
    )
    if compiled.returncode:
        sys.exit(f"{options.cc} could not compile {SOURCE}: see its messages above")
    try:
        if options.aar:
            with zipfile.ZipFile(options.aar) as archive:
                library.write_bytes(archive.read(f"jni/{options.abi}/libonnxruntime.so"))
        else:
            shutil.copyfile(options.library or installed_library(), library)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"no library for the phone: {error}. Name another with --library, or --aar and --abi")
    print(f"--device 'adb:?runner={runner.resolve()}&library={library.resolve()}'")


if __name__ == "__main__":
    main()
