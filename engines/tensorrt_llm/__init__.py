"""TensorRT-LLM: 2:4 checkpoints, engines that use sparse tactics, and the engine class over them.

Only the 1.2 line is targeted: it is the last with the TensorRT backend, and no other backend of
TensorRT-LLM has a 2:4 path. Nothing here imports TensorRT-LLM or torch until an engine is opened.
"""
