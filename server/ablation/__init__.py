"""The ablation: what each ingredient of the consensus preset is worth, one at a time, beside what else a hospital could do."""
