"""Full next-token log-probs through APIs that do not want to give them.

from invert_fast.extract import Client, LocalApi, Restrictions, extract
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
    BudgetSpentError,
    MalformedError,
    Query,
    RateLimitedError,
    RefusedError,
    UnauthorisedError,
    UnavailableError,
)
from .local import LocalApi, Restrictions
from .names import TokenNames
from .probe import Capabilities, probe
from .progress import Progress
from .subspace import Image, image_of

__all__ = [
    "Answer",
    "Api",
    "ApiError",
    "BudgetSpentError",
    "Capabilities",
    "Client",
    "Endpoint",
    "Extraction",
    "HttpApi",
    "Image",
    "LocalApi",
    "MalformedError",
    "Patience",
    "Progress",
    "Query",
    "RateLimitedError",
    "RefusedError",
    "Restrictions",
    "Settings",
    "TokenNames",
    "UnauthorisedError",
    "UnavailableError",
    "extract",
    "image_of",
    "probe",
]
