"""Print the PTX of a Triton kernel for a GPU that need not be there.

python emit_ptx.py MODULE:KERNEL CAPABILITY SIGNATURE CONSTEXPRS, the last two as JSON objects.
Run as a process of its own, because the tests' process has the interpreter switched on.
"""

import json
import sys
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def main(kernel: str, capability: str, signature: str, constexprs: str) -> None:
    """Compile down to machine code, so that ptxas has accepted it, and print the PTX."""
    module, name = kernel.split(":")
    source = ASTSource(
        fn=getattr(import_module(module), name),
        signature=json.loads(signature),
        constexprs=json.loads(constexprs),
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", int(capability), 32))
    if not compiled.asm["cubin"]:
        raise SystemExit("ptxas wrote no machine code")
    print(compiled.asm["ptx"])


if __name__ == "__main__":
    main(*sys.argv[1:])
