"""Export of trained models: stock NeMo files, ONNX, sherpa-onnx, model cards."""
