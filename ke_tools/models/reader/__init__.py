"""The reader: SERAC's counterfactual model as a LoRA on the served model itself.

A small model hardly heeds its context. The reader is an adapter on the attention (q, k, v, o), trained once per base model on
pairs of (fact, question) to answer from the fact and, where the fact does not apply, to answer as the base model does. It is
used only for requests in scope.

``samples`` builds what it is trained on, ``training`` fits it, ``averaging`` takes the mean of several, ``card`` says how a reader was
made and finds it again.
"""
