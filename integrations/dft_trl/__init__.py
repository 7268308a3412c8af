"""TRL's SFTTrainer and `trl sft` YAML for dft-plugin."""
