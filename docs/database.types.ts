
export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[]

export type Database = {
  
  "public": {
          Tables: {
            "chunks": {
                  Row: {
                    "char_end": number,"char_start": number,"content": string,"content_sha256": string,"context": string,"document_id": string,"fts": unknown,"heading_path": (string)[],"id": number,"language": string,"ordinal": number,"page_end": number,"page_start": number,"tenant_id": string,"token_count": number
                  }
                  ComputedFields: never
                  Insert: {
                    "char_end": number,"char_start": number,"content": string,"content_sha256": string,"context"?: string,"document_id": string,"fts"?: never,"heading_path"?: (string)[],"id"?: never,"language": string,"ordinal": number,"page_end": number,"page_start": number,"tenant_id": string,"token_count": number
                  }
                  Update: {
                    "char_end"?: number,"char_start"?: number,"content"?: string,"content_sha256"?: string,"context"?: string,"document_id"?: string,"fts"?: never,"heading_path"?: (string)[],"id"?: never,"language"?: string,"ordinal"?: number,"page_end"?: number,"page_start"?: number,"tenant_id"?: string,"token_count"?: number
                  }
                  Relationships: [
                    {
      foreignKeyName: "chunks_document_id_tenant_id_fkey"
      columns: ["document_id","tenant_id"]
isOneToOne: false
      referencedRelation: "documents"
      referencedColumns: ["id","tenant_id"]
    }
                  ]
                },"documents": {
                  Row: {
                    "bucket_id": string,"chunk_count": number | null,"content_sha256": string | null,"created_at": string,"error_code": string | null,"error_message": string | null,"generation": number,"id": string,"language": string,"mime_type": string | null,"name": string,"object_version": string | null,"page_count": number | null,"parse_id": number | null,"published_at": string | null,"published_generation": number | null,"published_parse_id": number | null,"size": number | null,"state": Database["public"]['Enums']["document_state"],"tenant_id": string,"title": string | null,"updated_at": string
                  }
                  ComputedFields: never
                  Insert: {
                    "bucket_id": string,"chunk_count"?: number | null,"content_sha256"?: string | null,"created_at"?: string,"error_code"?: string | null,"error_message"?: string | null,"generation"?: number,"id": string,"language": string,"mime_type"?: string | null,"name": string,"object_version"?: string | null,"page_count"?: number | null,"parse_id"?: number | null,"published_at"?: string | null,"published_generation"?: number | null,"published_parse_id"?: number | null,"size"?: number | null,"state"?: Database["public"]['Enums']["document_state"],"tenant_id": string,"title"?: string | null,"updated_at"?: string
                  }
                  Update: {
                    "bucket_id"?: string,"chunk_count"?: number | null,"content_sha256"?: string | null,"created_at"?: string,"error_code"?: string | null,"error_message"?: string | null,"generation"?: number,"id"?: string,"language"?: string,"mime_type"?: string | null,"name"?: string,"object_version"?: string | null,"page_count"?: number | null,"parse_id"?: number | null,"published_at"?: string | null,"published_generation"?: number | null,"published_parse_id"?: number | null,"size"?: number | null,"state"?: Database["public"]['Enums']["document_state"],"tenant_id"?: string,"title"?: string | null,"updated_at"?: string
                  }
                  Relationships: [
                    {
      foreignKeyName: "documents_tenant_id_fkey"
      columns: ["tenant_id"]
isOneToOne: false
      referencedRelation: "tenants"
      referencedColumns: ["id"]
    }
                  ]
                },"job_events": {
                  Row: {
                    "at": string,"attempt": number,"claim": number,"detail": Json | null,"document_id": string,"error_code": string | null,"event": string,"generation": number,"id": number,"job_id": number,"stage": string | null,"state": Database["public"]['Enums']["job_state"],"tenant_id": string,"took": string | null
                  }
                  ComputedFields: never
                  Insert: {
                    "at"?: string,"attempt": number,"claim": number,"detail"?: Json | null,"document_id": string,"error_code"?: string | null,"event": string,"generation": number,"id"?: number,"job_id": number,"stage"?: string | null,"state": Database["public"]['Enums']["job_state"],"tenant_id": string,"took"?: string | null
                  }
                  Update: {
                    "at"?: string,"attempt"?: number,"claim"?: number,"detail"?: Json | null,"document_id"?: string,"error_code"?: string | null,"event"?: string,"generation"?: number,"id"?: number,"job_id"?: number,"stage"?: string | null,"state"?: Database["public"]['Enums']["job_state"],"tenant_id"?: string,"took"?: string | null
                  }
                  Relationships: [
                    
                  ]
                },"jobs": {
                  Row: {
                    "attempt": number,"claim": number,"created_at": string,"document_id": string,"error_code": string | null,"error_message": string | null,"finalized_at": string | null,"generation": number,"id": number,"kind": string,"max_attempts": number,"priority": number,"progress": number | null,"rescues": number,"scheduled_at": string,"snoozes": number,"snoozing_since": string | null,"stage": string | null,"started_at": string | null,"state": Database["public"]['Enums']["job_state"],"tenant_id": string
                  }
                  ComputedFields: never
                  Insert: {
                    "attempt"?: number,"claim"?: number,"created_at"?: string,"document_id": string,"error_code"?: string | null,"error_message"?: string | null,"finalized_at"?: string | null,"generation": number,"id"?: never,"kind"?: string,"max_attempts"?: number,"priority"?: number,"progress"?: number | null,"rescues"?: number,"scheduled_at"?: string,"snoozes"?: number,"snoozing_since"?: string | null,"stage"?: string | null,"started_at"?: string | null,"state"?: Database["public"]['Enums']["job_state"],"tenant_id": string
                  }
                  Update: {
                    "attempt"?: number,"claim"?: number,"created_at"?: string,"document_id"?: string,"error_code"?: string | null,"error_message"?: string | null,"finalized_at"?: string | null,"generation"?: number,"id"?: never,"kind"?: string,"max_attempts"?: number,"priority"?: number,"progress"?: number | null,"rescues"?: number,"scheduled_at"?: string,"snoozes"?: number,"snoozing_since"?: string | null,"stage"?: string | null,"started_at"?: string | null,"state"?: Database["public"]['Enums']["job_state"],"tenant_id"?: string
                  }
                  Relationships: [
                    
                  ]
                },"pages": {
                  Row: {
                    "markdown": string,"page": number,"parse_id": number,"tenant_id": string
                  }
                  ComputedFields: never
                  Insert: {
                    "markdown": string,"page": number,"parse_id": number,"tenant_id": string
                  }
                  Update: {
                    "markdown"?: string,"page"?: number,"parse_id"?: number,"tenant_id"?: string
                  }
                  Relationships: [
                    
                  ]
                },"tenant_invitations": {
                  Row: {
                    "created_at": string,"email": string | null,"expires_at": string,"id": string,"invited_by": string,"role": Database["public"]['Enums']["tenant_role"],"tenant_id": string,"user_id": string | null
                  }
                  ComputedFields: never
                  Insert: {
                    "created_at"?: string,"email"?: string | null,"expires_at"?: string,"id"?: string,"invited_by": string,"role": Database["public"]['Enums']["tenant_role"],"tenant_id": string,"user_id"?: string | null
                  }
                  Update: {
                    "created_at"?: string,"email"?: string | null,"expires_at"?: string,"id"?: string,"invited_by"?: string,"role"?: Database["public"]['Enums']["tenant_role"],"tenant_id"?: string,"user_id"?: string | null
                  }
                  Relationships: [
                    {
      foreignKeyName: "tenant_invitations_tenant_id_fkey"
      columns: ["tenant_id"]
isOneToOne: false
      referencedRelation: "tenants"
      referencedColumns: ["id"]
    }
                  ]
                },"tenant_members": {
                  Row: {
                    "created_at": string,"kind": Database["public"]['Enums']["tenant_kind"],"role": Database["public"]['Enums']["tenant_role"],"tenant_id": string,"user_id": string
                  }
                  ComputedFields: never
                  Insert: {
                    "created_at"?: string,"kind"?: Database["public"]['Enums']["tenant_kind"],"role"?: Database["public"]['Enums']["tenant_role"],"tenant_id": string,"user_id": string
                  }
                  Update: {
                    "created_at"?: string,"kind"?: Database["public"]['Enums']["tenant_kind"],"role"?: Database["public"]['Enums']["tenant_role"],"tenant_id"?: string,"user_id"?: string
                  }
                  Relationships: [
                    {
      foreignKeyName: "tenant_members_tenant_id_kind_fkey"
      columns: ["tenant_id","kind"]
isOneToOne: false
      referencedRelation: "tenants"
      referencedColumns: ["id","kind"]
    }
                  ]
                },"tenants": {
                  Row: {
                    "created_at": string,"id": string,"kind": Database["public"]['Enums']["tenant_kind"],"language": string,"name": string
                  }
                  ComputedFields: never
                  Insert: {
                    "created_at"?: string,"id"?: string,"kind"?: Database["public"]['Enums']["tenant_kind"],"language"?: string,"name": string
                  }
                  Update: {
                    "created_at"?: string,"id"?: string,"kind"?: Database["public"]['Enums']["tenant_kind"],"language"?: string,"name"?: string
                  }
                  Relationships: [
                    
                  ]
                }
          }
          Views: {
            "audit": {
                  Row: {
                    "acted_as": string,"action": string,"actor": string | null,"affected": number,"at": string,"id": number,"subject": NonNullable<Json>
                  }
                  ComputedFields: never
                  Insert: {
                           "acted_as"?: string | null,"action"?: string | null,"actor"?: string | null,"affected"?: number | null,"at"?: string | null,"id"?: number | null,"subject"?: Json | null
                         }
                        Update: {
                           "acted_as"?: string | null,"action"?: string | null,"actor"?: string | null,"affected"?: number | null,"at"?: string | null,"id"?: number | null,"subject"?: Json | null
                         }
                        Relationships: [
                    
                  ]
                },"usage": {
                  Row: {
                    "at": string,"document_id": string | null,"job_id": number,"kind": string,"model": string,"money": number | null,"pages": number,"provider": string,"requests": number,"tenant_id": string,"tokens": number
                  }
                  ComputedFields: never
                  Insert: {
                           "at"?: string | null,"document_id"?: string | null,"job_id"?: number | null,"kind"?: string | null,"model"?: string | null,"money"?: number | null,"pages"?: number | null,"provider"?: string | null,"requests"?: number | null,"tenant_id"?: string | null,"tokens"?: number | null
                         }
                        Update: {
                           "at"?: string | null,"document_id"?: string | null,"job_id"?: number | null,"kind"?: string | null,"model"?: string | null,"money"?: number | null,"pages"?: number | null,"provider"?: string | null,"requests"?: number | null,"tenant_id"?: string | null,"tokens"?: number | null
                         }
                        Relationships: [
                    
                  ]
                }
          }
          Functions: {
            "accept_invitation":
{ Args: { "invitation": string }; Returns: string
                           },
"admit_search":
{ Args: { "tenant_ids"?: (string)[],"user_id": string }; Returns: Json
                           },
"cancel_job":
{ Args: { "job": number }; Returns: boolean
                           },
"cancel_jobs":
{ Args: { "at_most"?: number,"code"?: string,"older_than"?: string,"state"?: Database["public"]['Enums']["job_state"],"tenant"?: string }; Returns: {
              "done": number,"skipped": number
            }[]
                           },
"change_role":
{ Args: { "member": string,"role": Database["public"]['Enums']["tenant_role"],"tenant": string }; Returns: undefined
                           },
"create_organisation":
{ Args: { "name": string }; Returns: string
                           },
"health":
{ Args: Record<PropertyKey, never>; Returns: Json
                           },
"invite_member":
{ Args: { "email"?: string,"member"?: string,"role": Database["public"]['Enums']["tenant_role"],"tenant": string }; Returns: string
                           },
"job_details":
{ Args: { "job": number }; Returns: {
              "awaiting_parse_id": number,"job_id": number,"lease_expires_at": string,"raw_error": string,"taken_at": string,"updated_at": string,"worker_id": string
            }[]
                           },
"leave_organisation":
{ Args: { "tenant": string }; Returns: boolean
                           },
"my_invitations":
{ Args: Record<PropertyKey, never>; Returns: {
              "expires_at": string,"id": string,"role": Database["public"]['Enums']["tenant_role"],"tenant_id": string,"tenant_name": string
            }[]
                           },
"my_quotas":
{ Args: Record<PropertyKey, never>; Returns: {
              "bytes": number,"bytes_used": number,"files": number,"files_used": number,"pages_month": number,"pages_used": number,"running": number,"tenant_id": string
            }[]
                           },
"parse_hint":
{ Args: { "digest": string,"parse_id": number,"secret_sha256": string }; Returns: string
                           },
"pause_queue":
{ Args: { "queue"?: string }; Returns: string
                           },
"record_search":
{ Args: { "model": string,"payer": string,"provider": string,"request": string,"tokens": number }; Returns: undefined
                           },
"remove_member":
{ Args: { "member": string,"tenant": string }; Returns: boolean
                           },
"rename_organisation":
{ Args: { "name": string,"tenant": string }; Returns: undefined
                           },
"resume_queue":
{ Args: { "queue"?: string }; Returns: boolean
                           },
"retry_job":
{ Args: { "job": number }; Returns: undefined
                           },
"retry_jobs":
{ Args: { "at_most"?: number,"code"?: string,"older_than"?: string,"state"?: Database["public"]['Enums']["job_state"],"tenant"?: string }; Returns: {
              "done": number,"skipped": number
            }[]
                           },
"search":
{ Args: { "filters"?: Json,"match_count"?: number,"query": string,"query_embedding"?: (number)[] }; Returns: {
              "char_end": number,"char_start": number,"chunk_id": number,"content": string,"document_id": string,"document_name": string,"document_title": string,"heading_path": (string)[],"ordinal": number,"page_end": number,"page_start": number,"score": number,"similarity": number,"stale": boolean,"text_rank": number,"vector_rank": number
            }[]
                           },
"set_quota":
{ Args: { "bytes": number,"files": number,"pages_month": number,"running": number,"tenant": string }; Returns: number
                           },
"withdraw_invitation":
{ Args: { "invitation": string }; Returns: boolean
                           }
          }
          Enums: {
            "document_state": "pending"|"processing"|"ready"|"failed"|"cancelled","job_state": "available"|"running"|"completed"|"cancelled"|"discarded","tenant_kind": "personal"|"organisation","tenant_role": "reader"|"editor"|"admin"
          }
          CompositeTypes: {
            [_ in never]: never
          }
        }
}

type DatabaseWithoutInternals = Omit<Database, '__InternalSupabase'>

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, "public">]

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
        DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
      DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])[TableName] extends {
      Row: infer R
    }
    ? R
    : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
  ? (DefaultSchema["Tables"] & DefaultSchema["Views"])[DefaultSchemaTableNameOrOptions] extends {
      Row: infer R
    }
    ? R
    : never
  : never

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Insert: infer I
    }
    ? I
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
  ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Insert: infer I
    }
    ? I
    : never
  : never

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Update: infer U
    }
    ? U
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
  ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Update: infer U
    }
    ? U
    : never
  : never

export type Enums<
  DefaultSchemaEnumNameOrOptions extends
    | keyof DefaultSchema["Enums"]
    | { schema: keyof DatabaseWithoutInternals },
  EnumName extends DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"]
    : never = never
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"]
  ? DefaultSchema["Enums"][DefaultSchemaEnumNameOrOptions]
  : never

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends
    | keyof DefaultSchema["CompositeTypes"]
    | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"]
    : never = never
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"][CompositeTypeName]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema["CompositeTypes"]
  ? DefaultSchema["CompositeTypes"][PublicCompositeTypeNameOrOptions]
  : never

export const Constants = {
  "public": {
          Enums: {
            "document_state": ["pending", "processing", "ready", "failed", "cancelled"],"job_state": ["available", "running", "completed", "cancelled", "discarded"],"tenant_kind": ["personal", "organisation"],"tenant_role": ["reader", "editor", "admin"]
          }
        }
} as const
