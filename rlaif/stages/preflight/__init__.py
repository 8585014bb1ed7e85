"""Everything about a run that can be found wrong without Ray, found at once: files, models, functions, arithmetic, disk.

`examine` checks a configuration for one stage or for the whole way to an evaluated policy. The check of each stage is
in the stage's own file (rlaif/stages/table.py names it); what several checks need is in the other files of this folder.
"""
