"""The assertions of the course, one function each. The decision rule is in the function, fixed before the runs."""

from manyfit.claims.course.generalisation import overfitting as overfitting
