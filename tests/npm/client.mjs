// An MCP client with a protocol implementation of its own: lists the tools of a service and calls some of them.
//
//   node client.mjs URL '[{"name": "...", "arguments": {...}}, ...]'
//
// prints one JSON object: what the server says it is, its tools, and the results in the order of the calls.
import { createMCPClient } from "@ai-sdk/mcp";

const [url, calls] = process.argv.slice(2);
const headers = process.env.MCP_KEY ? { Authorization: `Bearer ${process.env.MCP_KEY}` } : {};

const client = await createMCPClient({ transport: { type: "http", url, headers } });
try {
  const { tools } = await client.listTools();
  const made = await client.tools();
  const results = [];
  for (const { name, arguments: args } of JSON.parse(calls)) {
    results.push(await made[name].execute(args, { messages: [], toolCallId: String(results.length) }));
  }
  console.log(JSON.stringify({ server: client.serverInfo, instructions: client.instructions, tools, results }));
} finally {
  await client.close();
}
