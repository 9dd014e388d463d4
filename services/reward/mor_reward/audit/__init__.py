"""Privacy audit of a reward model by its owner.

::

    audit_job      one audit: margins of the model, shadow models, figures, ``audit.json``
    shadow_models  models by the same recipe, each on a random half of the pictures
    membership     attacks: from margins to one number per pair or picture, larger for members
    roc_curve      success of an attack: AUC with interval, true positives, lower bound of ε
    audit_words    the findings in plain words
"""
