"""Knowledge: facts in words, and tasks that ask whether a model still knows some of them and not others."""
