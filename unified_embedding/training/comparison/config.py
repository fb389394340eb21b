"""What is compared, as data: configs/compare.yaml."""
