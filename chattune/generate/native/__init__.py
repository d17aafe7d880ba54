"""The compiled step: weights in float32, bfloat16, int8 or int4, and a C++ kernel that is built on first use where a compiler is."""
