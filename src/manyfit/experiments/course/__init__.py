"""The assertions of the course, one function each. The decision rule is in the function, fixed before the runs."""

from manyfit.experiments.course.descent import learning_rate as learning_rate
from manyfit.experiments.course.generalisation import early_stopping as early_stopping
from manyfit.experiments.course.generalisation import overfitting as overfitting
from manyfit.experiments.course.masks import dropout as dropout
from manyfit.experiments.course.probed import dying_relu as dying_relu
from manyfit.experiments.course.probed import vanishing_gradient as vanishing_gradient
from manyfit.experiments.course.probed import zero_centred as zero_centred
from manyfit.experiments.course.rates import optimizers as optimizers
from manyfit.experiments.course.steps import batch_size as batch_size
from manyfit.experiments.course.steps import minibatch_parallel as minibatch_parallel
from manyfit.experiments.course.units import losses as losses
from manyfit.experiments.course.units import nonlinearity as nonlinearity
from manyfit.experiments.course.units import perceptron as perceptron
from manyfit.experiments.course.units import relu_convergence as relu_convergence
