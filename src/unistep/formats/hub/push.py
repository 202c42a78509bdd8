"""Model folders published on the Hugging Face Hub."""

from pathlib import Path

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.formats.hub.address import hub_address
from unistep.formats.hub.download import TIMEOUT, api_of, is_offline
from unistep.formats.hub.errors import explained
from unistep.formats.hub.listing import request_headers
from unistep.formats.hub.transfer import read_json
from unistep.formats.model_folder.files import REQUIRED, is_whole, variants_of

_MOST_BYTES = 16 << 20  # of the answer about a model


def push_folder(
    folder: str | Path,
    model_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes a model folder: makes the repository where there is none, and commits the folder to its branch main.

    Hidden files stay behind. Files of the repository that the folder does not have stay as they are.

    Args:
        folder: model folder.
        model_id: `owner/name`.
        token: access token with write permission, as in `fetch_folder`.
        private: whether a new repository is private; None is the owner's default.
        commit_message: message of the commit; None is "Upload model".

    Returns:
        The model's page.

    Raises:
        UserError: not a model folder; no permission; no network; `private` and the repository is public.
    """
    folder = user_path(folder)
    if not any(is_whole(folder, variant) for variant in (None, *variants_of(folder))):
        raise UserError(f"{folder} is not a whole model folder; it needs {', '.join(REQUIRED)} and weights in unet/")
    address = hub_address(model_id, token=token)
    if is_offline():
        raise UserError(f"cannot push to {model_id}: HF_HUB_OFFLINE is set; unset it")
    with explained(address, writing=True):
        from huggingface_hub.errors import HfHubHTTPError

        api = api_of(address)
        found = None
        try:
            page = f"{address.endpoint}/api/models/{model_id}"
            found = read_json(page, request_headers(address), TIMEOUT, _MOST_BYTES)
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 404):  # 401: the Hub's answer to strangers
                raise
        if private and found is not None and not (isinstance(found, dict) and found.get("private") is True):
            raise UserError(f"{model_id} exists and is public; make it private on its page, or push to another name")
        url = api.create_repo(model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=model_id,
            folder_path=folder,
            commit_message=commit_message or "Upload model",
            ignore_patterns=[".*", "*/.*"],
        )
        return str(url)
