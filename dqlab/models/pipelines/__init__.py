"""Pipelines that diffusers does not have; `dqlab.load` opens their folders."""
