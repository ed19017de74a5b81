"""The report over a suite of the arena: methods × sparsities × seeds.

What the page reads from a suite, beside the cells:

* ``methods.KEY.family`` decides where a method stands: ``control`` and ``ablation`` stay out of the
  contest and have sections of their own, all others compete.
* The method under the key ``magnitude`` is the reference of all differences; without it, the first.
* A control may say what it is held against (``of``: a key, else the reference), where it should come out
  (``expect``: ``below``, ``level`` or ``above``) and what that shows (``shows``: a sentence). Of shuffled
  and inverted scores, of teachers that are untrained, taught random labels or the student itself, and of
  networks that are not pruned at all, the report knows the last two.
* ``two_by_two: [[A, B], [C, D]]``, keys of methods: A and B score without the teacher, C and D with it;
  A and C recover without KD, B and D with it.
"""
