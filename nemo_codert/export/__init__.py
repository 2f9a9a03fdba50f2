"""What leaves a run: stock NeMo files, ONNX, sherpa-onnx, model cards."""
