"""The OpenAI face as the official client and as a plain HTTP client see it, over a real uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry, Counter

from baton.errors import Internal, InvalidArgument, Overloaded, Unavailable
from fakes import FakeFrontend
from router.http.app import create_app
from router.http.body import MAX_BODY_BYTES
from router.http.server import HttpServer
from router.request import Chat, Message
