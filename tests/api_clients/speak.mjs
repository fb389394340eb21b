// openai for Node against a base URL; prints what it read, as JSON.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const [base, packages, ...pictures] = process.argv.slice(2);
const require = createRequire(path.join(packages, 'package.json'));
const { OpenAI } = require('openai');

const client = new OpenAI({ baseURL: base, apiKey: 'any' });
const input = pictures.map((name) => 'data:image/jpeg;base64,' + readFileSync(name, 'base64'));
const both = { embedding_type: ['float', 'ubinary'] };
const answer = await client.embeddings.create({ model: 'unified-embedder', input, ...both });
const codes = await client.embeddings.create({
  model: 'unified-embedder', input, embedding_type: 'ubinary',
});
if (codes.data.some((row) => row.embedding.length !== 0)) throw new Error('a vector was sent');
let refused = null;
try {
  await client.embeddings.create({ model: 'unified-embedder', input: 'a red chair' });
} catch (error) {
  refused = [error.status, error.code];
}
const rows = answer.data.map((row) => ({ embedding: Array.from(row.embedding), code: row.code }));
console.log(JSON.stringify({ rows, codes: codes.data.map((row) => row.code), refused }));
