"""The finished model on the Hugging Face Hub: found out at the start whether it will be taken, pushed at the end.

transformers' own pushing is switched off: at every save it sends whatever stands in the run's folder, sessions and
their texts included. What is sent here is the model, its card, the recipe, the metrics and the versions.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from ppp.checks import refuse
from ppp.config import PPPConfig
from ppp.export import MODEL_FILES
from ppp.model_card import CARD_FILE
from ppp.resume import RECIPE_FILE
from ppp.run_folder import VERSIONS_FILE
from ppp.run_log import METRICS_FILE
from ppp.types import InfrastructureError, RecipeError

logger = logging.getLogger(__name__)

SENT = (*MODEL_FILES, CARD_FILE, RECIPE_FILE, METRICS_FILE, VERSIONS_FILE)
# What huggingface_hub raises: errors of the HTTP library that it stands on, which has changed its name before, so it is
# asked; OSErrors; and ValueErrors for names that cannot be.
HUB_ERRORS = (OSError, HTTPError, ValueError)


class Hub:
    """A repository on the Hub to which this process may write."""

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self.repo_id, self.revision = repo_id, revision

    def push(self, folder: Path) -> str:
        """Send the finished model; returns where it can be seen.

        Raises:
            InfrastructureError: the Hub did not take it. What is in the folder stays there.
        """
        try:
            found = HfApi().upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                allow_patterns=list(SENT),
                ignore_patterns=["*/*"],
                revision=self.revision,
                commit_message="Trained with PPP",
            )
        except HUB_ERRORS as error:
            raise InfrastructureError(
                f"the trained model stands in {folder}, but the Hub did not take it ({one_line(error)}); send it with "
                f"hf upload {self.repo_id} {folder} --exclude '*/*' '*.jsonl'"
            ) from error
        return str(found.commit_url)


def open_hub(args: PPPConfig) -> Hub | None:
    """Find out, before a model is loaded, whether the Hub will take the model; None where none is to be sent.

    A token of the recipe goes into the environment, and is not kept where it could be written to a file.

    Raises:
        RecipeError: no token, a wrong one, no such place, or no network; on all processes alike.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if args.hub_token:
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if args.hub_strategy in ("checkpoint", "all_checkpoints"):
        raise refuse("hub_strategy", args.hub_strategy.value, "end: the finished model is sent, and no checkpoint")
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    answer: str | RecipeError = ""
    if PartialState().is_main_process:
        try:
            private = args.hub_private_repo
            answer = HfApi().create_repo(name, private=private, exist_ok=True).repo_id
        except HUB_ERRORS as error:
            hint = (
                "set HF_TOKEN, look at hub_model_id and the network, or leave push_to_hub out and use hf upload later"
            )
            answer = RecipeError(f"push_to_hub: the Hub does not give {name!r} ({one_line(error)}); {hint}")
    if PartialState().num_processes > 1:
        answer = broadcast_object_list([answer])[0]
    if isinstance(answer, RecipeError):
        raise answer
    return Hub(answer, args.hub_revision)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
