"""The OpenVINO target: CPU engines."""
