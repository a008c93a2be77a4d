from sightline.data.sources.convert_idx import convert_idx as convert_idx
from sightline.params.data import FashionMNIST as FashionMNIST
from sightline.params.data import get_dataloader as get_dataloader
from sightline.params.defaults import params as params
from sightline.params.files import load_checkpoint as load_checkpoint
from sightline.params.loop import set_seeds as set_seeds
from sightline.params.loop import train as train
from sightline.params.network import build_classifier as build_classifier
