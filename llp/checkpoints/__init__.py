"""Checkpoints: how they are written, opened and checked.

A checkpoint is a dictionary of tensors and plain values, which `weights_only` loads. A sharded one is a folder whose
`meta.pt` holds all but the weights and the states of the optimizer. Lightning writes:

- `state_dict`: the weights by name.
- `optimizer_states`: the states of the optimizer, by names of weights (`module.name_optimizer_states`).
- `lr_schedulers`, `loops`, `global_step`, `epoch`, `pytorch-lightning_version`: where training stands.
- `callbacks`: their states, such as the numbers of tokens of `RunMetrics` and the curve of `ValidationLines`.
- `hyper_parameters`, `datamodule_hyper_parameters`: the arguments of the model and the data module, and
  `hparams_name`, `datamodule_hparams_name`.
- The state of the data module under the name of its class: the number of training windows taken.

`CheckpointedModule.on_save_checkpoint` (module.py) adds:

- `architecture`: the class path of the model.
- `seed`: the run's seed, or None.
- `tokenizer`: class, settings, fingerprint, start token and content, or None (`reading.stored_tokenizer`).
- `settings_history`: the settings of the run, and for each resume those that changed (`settings_history`).
- `initialized_from`: the checkpoint whose weights the run started from, or None.
- `fingerprints`: digests of the initial weights and the training windows (`fingerprints`).
- `config`: the run's configuration as YAML, or None.
- `base`: digest of the frozen weights that adapters belong to, or None if all weights are there.
"""
