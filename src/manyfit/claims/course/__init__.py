"""The assertions of the course, one function each. The decision rule is in the function, fixed before the runs."""

from manyfit.claims.course.descent import learning_rate as learning_rate
from manyfit.claims.course.generalisation import early_stopping as early_stopping
from manyfit.claims.course.generalisation import overfitting as overfitting
from manyfit.claims.course.masks import dropout as dropout
from manyfit.claims.course.probed import dying_relu as dying_relu
from manyfit.claims.course.probed import vanishing_gradient as vanishing_gradient
from manyfit.claims.course.probed import zero_centred as zero_centred
from manyfit.claims.course.rates import optimizers as optimizers
from manyfit.claims.course.steps import batch_size as batch_size
from manyfit.claims.course.steps import minibatch_parallel as minibatch_parallel
from manyfit.claims.course.units import losses as losses
from manyfit.claims.course.units import nonlinearity as nonlinearity
from manyfit.claims.course.units import perceptron as perceptron
from manyfit.claims.course.units import relu_convergence as relu_convergence
