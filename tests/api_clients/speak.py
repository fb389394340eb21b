"""One SDK after the other against a base URL; prints what each read, as JSON.

python speak.py NAME BASE_URL PICTURE...
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

MODEL = "unified-embedder"
BOTH = {"embedding_type": ["float", "ubinary"]}


def data_url(path):
    return "data:image/jpeg;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def rows(answer):
    return [{"embedding": list(row.embedding), "code": row.code} for row in answer.data]


def openai_sync(base, pictures):
    from openai import OpenAI

    client = OpenAI(base_url=base, api_key="any")
    inputs = [data_url(picture) for picture in pictures]
    # By default the SDK asks for base64 and decodes it.
    by_default = client.embeddings.create(model=MODEL, input=inputs, extra_body=BOTH)
    as_floats = client.embeddings.create(
        model=MODEL, input=inputs, encoding_format="float", extra_body=BOTH
    )
    only_codes = client.embeddings.create(
        model=MODEL, input=inputs, extra_body={"embedding_type": "ubinary"}
    )
    assert [row.embedding for row in by_default.data] == [row.embedding for row in as_floats.data]
    assert [row.embedding for row in only_codes.data] == [[]] * len(pictures)
    assert [row.code for row in only_codes.data] == [row.code for row in by_default.data]
    models = client.models.list().data
    assert client.models.retrieve(models[1].id).version == by_default.version
    return rows(by_default)


def openai_batch(base, pictures):
    """200 pictures in one call."""
    from openai import OpenAI

    client = OpenAI(base_url=base, api_key="any")
    inputs = [data_url(picture) for picture in pictures] * (200 // len(pictures))
    return rows(client.embeddings.create(model=MODEL, input=inputs, extra_body=BOTH))


def openai_async(base, pictures):
    from openai import AsyncOpenAI

    async def ask():
        async with AsyncOpenAI(base_url=base, api_key="any") as client:
            calls = [
                client.embeddings.create(model=MODEL, input=data_url(picture), extra_body=BOTH)
                for picture in pictures
            ]
            return [row for answer in await asyncio.gather(*calls) for row in rows(answer)]

    return asyncio.run(ask())


def openai_errors(base, pictures):
    import openai

    client = openai.OpenAI(base_url=base, api_key="any")
    found = {}
    for name, arguments in {
        "text": {"input": "a red chair", "model": MODEL},
        "address": {"input": "https://example.org/a.jpg", "model": MODEL},
        "version": {"input": data_url(pictures[0]), "model": f"{MODEL}@0000"},
        "model": {"input": data_url(pictures[0]), "model": "text-embedding-3-small"},
        "width": {"input": data_url(pictures[0]), "model": MODEL, "dimensions": 64},
    }.items():
        try:
            client.embeddings.create(**arguments)
        except openai.APIStatusError as error:
            found[name] = [error.status_code, error.code, type(error).__name__]
    return found


def litellm_embedding(base, pictures):
    import litellm

    answer = litellm.embedding(
        model=f"openai/{MODEL}",
        input=[data_url(picture) for picture in pictures],
        api_base=base,
        api_key="any",
        encoding_format="float",
    )
    return [{"embedding": row["embedding"]} for row in answer.data]


def langchain(base, pictures):
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(
        model=MODEL, base_url=base, api_key="any", check_embedding_ctx_length=False, chunk_size=256
    )
    vectors = client.embed_documents([data_url(picture) for picture in pictures])
    return [{"embedding": vector} for vector in vectors]


def raw_httpx(base, pictures):
    import httpx

    answers = [
        httpx.post(
            f"{base}/embeddings",
            params={"embedding_type": "float,ubinary"},
            content=Path(picture).read_bytes(),
            headers={"Content-Type": "image/jpeg"},
        ).raise_for_status()
        for picture in pictures
    ]
    return [answer.json()["data"][0] for answer in answers]


def qdrant(base, pictures):
    """A collection of the codes' bits in Qdrant's local mode finds what bits say."""
    import numpy as np
    from openai import OpenAI
    from qdrant_client import QdrantClient, models

    client = OpenAI(base_url=base, api_key="any")
    inputs = [data_url(picture) for picture in pictures]
    answer = client.embeddings.create(
        model=MODEL, input=inputs, extra_body={"embedding_type": "ubinary"}
    )
    packed = np.stack([np.frombuffer(base64.b64decode(row.code), np.uint8) for row in answer.data])
    bits = np.unpackbits(packed, axis=1).astype(np.float32)
    store = QdrantClient(":memory:")
    # Manhattan distance of bits is their Hamming distance.
    space = models.VectorParams(size=bits.shape[1], distance=models.Distance.MANHATTAN)
    store.create_collection("codes", vectors_config=space)
    points = [models.PointStruct(id=i, vector=row.tolist()) for i, row in enumerate(bits)]
    store.upsert("codes", points)
    found = []
    for row in bits:
        hits = store.query_points("codes", query=row.tolist(), limit=len(bits)).points
        found.append([[hit.id, round(abs(hit.score))] for hit in hits])
    return {"codes": [row.code for row in answer.data], "found": found}


if __name__ == "__main__":
    functions = (openai_sync, openai_batch, openai_async, openai_errors)
    functions += (litellm_embedding, langchain, raw_httpx, qdrant)
    names = {function.__name__: function for function in functions}
    name, base, *pictures = sys.argv[1:]
    print(json.dumps(names[name](base, pictures)))
