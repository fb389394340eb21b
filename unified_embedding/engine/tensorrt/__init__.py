"""The TensorRT targets: plans for GPUs, from ONNX or through Torch-TensorRT."""
