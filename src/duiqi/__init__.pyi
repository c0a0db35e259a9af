from duiqi.api import run as run
from duiqi.models.loading import load_model as load_model
from duiqi.models.reward import load_reward_model as load_reward_model

__version__: str
