"""The real `python -m verl.trainer.main_ppo` on the CPU, as support for tests: no accelerator, no inference engine.

`runs` starts it; `assets` and `reward` are what it trains on. `plugin` is loaded in every process of verl's and
registers a CPU platform (`device`) and a rollout by transformers (`rollout`, `server`, `agent`). `witness` notes what
verl computed, by means of its own. `warm` makes processes start fast. Ray's import all of it by this package's name.
"""
