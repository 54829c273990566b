"""Full next-token log-probs through APIs that do not want to give them.

from invert_fast.logits.extract import Client, LocalApi, Restrictions, extract
api = LocalApi(Inverter.from_pretrained("bundled"), Restrictions(top=5))
print(extract(Client(api), "The river was").log_probs)
"""

from .client import Client, Patience
from .extraction import Extraction, Settings, extract
from .http import Endpoint, HttpApi
from .interface import (
    Answer,
    Api,
    ApiError,
    BudgetSpent,
    Malformed,
    Query,
    RateLimited,
    Refused,
    Unauthorised,
    Unavailable,
)
from .local import LocalApi, Restrictions
from .probe import Capabilities, probe
from .progress import Progress
from .names import TokenNames
from .subspace import Image, image_of

__all__ = [
    "Answer",
    "Api",
    "ApiError",
    "BudgetSpent",
    "Capabilities",
    "Client",
    "Endpoint",
    "Extraction",
    "HttpApi",
    "Image",
    "LocalApi",
    "Malformed",
    "Patience",
    "Progress",
    "Query",
    "RateLimited",
    "Refused",
    "Restrictions",
    "Settings",
    "TokenNames",
    "Unauthorised",
    "Unavailable",
    "extract",
    "image_of",
    "probe",
]
