"""Runs a step on a Databricks cluster: step.py FOLDER STEP ARGUMENTS.

FOLDER holds the project; ARGUMENTS are read as a shell reads them. A file of its own, because Databricks runs a file.
"""

import os
import runpy
import shlex
import sys

folder, step, *arguments = sys.argv[1:]
folder = os.path.abspath(folder)
os.environ["PYTHONPATH"] = folder  # of the processes that a step starts
sys.path.insert(0, folder)
sys.argv = [step, *(word for argument in arguments for word in shlex.split(argument))]
runpy.run_module(f"entrypoints.{step}", run_name="__main__", alter_sys=True)
