"""Runs one job of cocu-jax: `python main.py --config=configs/cocu.py --workdir=runs/cocu`.

`config.job` selects the job; `cocu_jax/run.py` reads the flags, connects the hosts and starts it.
"""

from cocu_jax.run import main

if __name__ == "__main__":
    main()
